"""Draws four images of each class with a checkpoint and saves them: python examples/sample.py [FILE CLASS ...]."""

import sys

import enat

weights, *classes = sys.argv[1:] or ["examples/emoji", "face", "flag"]
model = enat.load(weights)
images = model.generate(classes or None, images_per_class=4, seed=0)  # a list of PIL images
for number, image in enumerate(images):
    image.save(f"sample_{number}.png")
