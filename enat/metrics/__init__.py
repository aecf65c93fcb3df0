"""Scores of generated images; one engine for the validation callback and the evaluate task."""
