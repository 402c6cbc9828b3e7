"""How large a network is."""

from torch import nn


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(tensor.numel() for tensor in model.parameters())


def memory_mb(model: nn.Module) -> float:
    """Megabytes (10⁶ bytes) of parameters and buffers, at the types they have."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def memory_saving(pruned: int, base: int) -> float:
    """1 − pruned parameters / base parameters: the saving that every report means."""
    return 1.0 - pruned / base
