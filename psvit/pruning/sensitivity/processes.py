"""Several processes share one analysis: each runs every n-th batch, and all know all sums."""

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def rank_and_world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def of_all(value: Value) -> list[Value]:
    """The value of each process, in the order of their numbers."""
    _, world = rank_and_world()
    values = [value]
    if world > 1:
        values = [value] * world
        dist.all_gather_object(values, value)
    return values
