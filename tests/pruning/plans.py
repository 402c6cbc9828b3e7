"""Plans for tests: chosen by chance, so that they do not depend on any importance."""

import random

import torch

from psvit.channels import Plan


def random_units(group, ratio, seed=0):
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


def same_bits(first, second):
    """Two state dicts hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )
