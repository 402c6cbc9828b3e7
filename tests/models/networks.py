"""Small networks of every family whose neurons fire, and plans for them."""

import random

import torch
from torch import nn

from psvit.channels import Plan
from psvit.models import create_model

PYRAMID = {
    "embed_dims": [8, 16, 24, 32],
    "depth": [1, 1, 1, 2, 1],
    "strides": [2, 2, 1, 2, 1],
    "mlp_ratio": 2.0,
}
COLUMN = {"embed_dims": 32, "depth": 2, "strides": [2, 2, 1, 1]}
SMALL = {
    "meta_spikeformer": {**PYRAMID, "time_steps": 4},
    "e_spikeformer": {**PYRAMID, "time_steps": 3},
    "sdt_v1": COLUMN,
    "spikformer": COLUMN,
    "spikformer_cifar": COLUMN,
    "qkformer": {"embed_dims": 32, "depth": 5, "strides": [2, 2, 1, 1]},
}
FAMILIES = [name for name in SMALL if name != "spikformer_cifar"]


def small(name, **overrides):
    values = {"num_heads": 4, "image_size": 32, "num_classes": 5, **SMALL[name], **overrides}
    torch.manual_seed(0)
    return create_model(name, **values)


def images(batch=3, channels=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 32, 32, dtype=torch.float64, generator=generator)


def alive(name, **overrides):
    """A float64 network in evaluation mode whose batch norms know its activations.

    Biases above 0 let attention, which multiplies spikes, fire at all.
    """
    network = small(name, **overrides).double()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.8)
        nn.init.uniform_(norm.bias, 0.2, 1.4)
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(images(4, overrides.get("in_channels", 3), seed=100 + seed))
    return network.eval()


def random_units(group, ratio, seed):
    """Kept units: ``ratio`` of every head's are removed, but not all."""
    chooser = random.Random(f"{group.name} {seed}")
    per_head = group.size // group.heads
    keep = max(1, per_head - round(ratio * per_head))
    return [
        head * per_head + unit
        for head in range(group.heads)
        for unit in chooser.sample(range(per_head), keep)
    ]


def random_plan(groups, ratio, seed=0):
    return Plan({group.name: random_units(group, ratio, seed) for group in groups})


def logits(network, x):
    with torch.no_grad():
        return network(x)
