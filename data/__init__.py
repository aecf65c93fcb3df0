"""Data: images, tokens, and the streams that feed training."""
