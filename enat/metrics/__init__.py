"""Scores of images: torchmetrics metrics, and one pass over the images for all of them."""
