"""Provides data sets that need no download."""
