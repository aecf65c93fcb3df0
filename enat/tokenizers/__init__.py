"""Tokenizers turn images into token ids and back."""
