"""How large a network is: on disk, and in memory while it runs."""

import weakref
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psvit.neurons import reset_state


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(tensor.numel() for tensor in model.parameters())


def memory_mb(model: nn.Module) -> float:
    """Megabytes (10⁶ bytes) of parameters and buffers, at the types they have."""
    return (_bytes(model.parameters()) + _bytes(model.buffers())) / 1e6


def memory_saving(pruned: int, base: int) -> float:
    """1 − pruned parameters / base parameters: the saving that every report means."""
    return 1.0 - pruned / base


def measure_footprint(network: nn.Module, images: Tensor) -> pd.DataFrame:
    """Bytes of a network, stored and running in evaluation mode on a batch.

    Args:
        network: runs at the type that it has, float32 or float64.
        images: the batch, ``[B, C, H, W]`` or ``[B, T, C, H, W]``.

    Returns:
        A row for ``dtype`` float32 and one for float16: ``weight_bytes`` (parameters),
        ``buffer_bytes`` (statistics of batch norms, counters), ``checkpoint_bytes`` (the file of
        weights), ``batch_size``, ``peak_activation_bytes`` (most that all tensors alive at once
        hold while the batch runs over all time steps: membrane potentials included, images and
        parameters not) and ``membrane_bytes`` (the potentials that a step hands to the next).
        What runs is measured once, and scaled to the width of the type.
    """
    peak, membrane = _running_bytes(network, images)
    measured = next(network.parameters()).element_size()
    rows = []
    for dtype in (torch.float32, torch.float16):
        stored = {name: _cast(tensor, dtype) for name, tensor in network.state_dict().items()}
        scale = dtype.itemsize / measured
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "weight_bytes": _bytes(_cast(tensor, dtype) for tensor in network.parameters()),
                "buffer_bytes": _bytes(_cast(tensor, dtype) for tensor in network.buffers()),
                "checkpoint_bytes": len(save(stored)),
                "batch_size": len(images),
                "peak_activation_bytes": round(peak * scale),
                "membrane_bytes": round(membrane * scale),
            }
        )
    return pd.DataFrame(rows)


def _running_bytes(network: nn.Module, images: Tensor) -> tuple[int, int]:
    """Most bytes alive at once, and bytes of membrane potential, at the network's own type."""
    training = network.training
    network.eval()
    known = (*network.parameters(), *network.buffers(), images)
    with torch.no_grad(), _Alive(known) as alive:
        network(images)
    neurons = [module for module in network.modules() if isinstance(module, BaseNode)]
    membrane = _bytes(neuron.v for neuron in neurons if isinstance(neuron.v, Tensor))
    reset_state(network)
    network.train(training)
    return alive.peak, membrane


class _Alive(TorchDispatchMode):
    """Follows how many bytes the tensors hold that operators make, and when they are freed.

    Args:
        known: tensors that were there before, and are not counted.
    """

    def __init__(self, known: tuple[Tensor, ...]):
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        # views share their storage, which is counted once
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of ``tensor`` at ``dtype``; whole numbers stay what they are."""
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(kind, copy=True, memory_format=torch.contiguous_format)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
