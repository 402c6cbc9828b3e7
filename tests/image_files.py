"""Folders of images made for a test."""

import numpy as np
from PIL import Image

FOLDER = [
    "dataset=image_folder",
    "dataset.image_size=32",
    "dataset.train_images=null",
    "dataset.val_images=null",
    "dataset.test_images=null",
]


def write_images(root, counts):
    """``{"train/cat": 3}``: so many images of random pixels."""
    generator = np.random.default_rng(0)
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{number}.png")


def images_of(**counts):
    """Options that read a folder with these images."""

    def options(folder):
        write_images(folder, {place.replace("__", "/"): n for place, n in counts.items()})
        return FOLDER + [f"dataset.root={folder}"]

    return options
