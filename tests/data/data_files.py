"""Datasets for the tests of psvit.data."""

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from psvit.data import create_data

DATASETS = Path(__file__).parents[2] / "conf" / "dataset"


def load_cfg(dataset, /, **overrides):
    """A shipped dataset config; ``augment__hflip=1`` overrides ``augment.hflip``."""
    cfg = OmegaConf.load(DATASETS / f"{dataset}.yaml")
    OmegaConf.set_struct(cfg, True)
    for key, value in overrides.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def load_data(dataset, /, seed=0, **overrides):
    return create_data(load_cfg(dataset, **overrides), seed)


def write_image(path, seed, size=(32, 32)):
    """Random pixels, so that no two images are alike; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
