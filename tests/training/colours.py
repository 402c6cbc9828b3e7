"""A task that a small network learns in seconds: which of three colours an image has."""

import random

import torch
from torch.utils.data import TensorDataset

from psvit.channels import Plan
from psvit.models import create_model


def small(**values):
    """An untrained network, the same in each call."""
    torch.manual_seed(0)
    return create_model(
        "meta_spikeformer",
        **{
            "embed_dims": [16, 16, 16, 16],
            "depth": [1, 1, 1, 1, 1],
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "image_size": 32,
            "strides": [2, 2, 2, 1, 1],
            "time_steps": 2,
            "num_classes": 3,
            "attention_scale": 1.0,
            **values,
        },
    )


# what a test of `fit` trains: a step takes milliseconds
TINY = {"embed_dims": [8, 8, 8, 8], "image_size": 16, "time_steps": 1}


def half_of_all(network):
    """A plan that keeps half of each group's channels."""
    chooser = random.Random(0)
    kept = {}
    for name, group in network.channel_groups().items():
        per_head = group.size // group.heads
        kept[name] = [
            head * per_head + unit
            for head in range(group.heads)
            for unit in chooser.sample(range(per_head), per_head // 2)
        ]
    return Plan(kept)


def separable(count=96, size=32):
    """A class for each colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    images[torch.arange(count), labels] += 1.0
    return TensorDataset(images, labels)
