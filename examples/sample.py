"""Loads a checkpoint, draws four images of two classes each and saves them: python examples/sample.py [FILE]."""

import sys

import enat

model = enat.load(sys.argv[1] if len(sys.argv) > 1 else "outputs/digits/checkpoints/last.ckpt")
images = model.generate(classes=[3, 7], images_per_class=4, seed=0)  # a list of PIL images
for number, image in enumerate(images):
    image.save(f"sample_{number}.png")
