"""Neurons' gradients on the CPU through ``torch.compile``: a step is one pass over memory.

They are those of ``psvit.neurons``, whose forward pass gains nothing from it in a network
(docs/speed.md). What is compiled takes a step's numbers as one row, in whatever order they lie in
memory, so that no layer's shape is a reason to compile again. Legend: T time steps, N numbers in a
step.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from psvit.errors import UserError

# numbers in a call behind which it is the faster: in fewer, calling it takes longer than it saves
_MANY = 2**18

_wanted = False


def compile_neurons(wanted: bool) -> None:
    """Whether neurons' gradients on the CPU are compiled from here on.

    A process compiles for some seconds, here and where neurons first train for another number of
    steps.

    Raises:
        UserError: nothing can be compiled here.
    """
    global _wanted
    _wanted = False
    if not wanted:
        return
    try:
        ones = torch.ones(2, 64)
        lif_gradient(ones, ones, 2.0, 1.0, 4.0)
    except Exception as error:  # noqa: BLE001  the compiler's own, as many as there are systems
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            "compile", True, f"expected false, or a C++ compiler that torch finds ({reason})"
        ) from error
    _wanted = True


def serves(charged: Tensor) -> bool:
    """Whether the functions below take this potential ``[T, ...]``, and are the faster ones."""
    if not _wanted or charged.numel() < _MANY or torch.compiler.is_compiling():
        return False
    plain = charged.device.type == "cpu" and charged.dtype in (torch.float32, torch.float64)
    step = charged[0]
    dense = step.is_contiguous() or (
        step.dim() == 4 and step.is_contiguous(memory_format=torch.channels_last)
    )
    return plain and dense and charged.stride(0) == step.numel()


def lif_gradient(
    grad_spikes: Tensor, charged: Tensor, tau: float, v_threshold: float, alpha: float
) -> Tensor:
    """Gradient of the currents ``[T, ...]`` of an LIF neuron whose potential H was ``charged``."""
    return _run(_lif, grad_spikes, charged, tau, v_threshold, alpha)


def integer_gradient(
    grad_counts: Tensor, charged: Tensor, levels: int, leak: float, norm: float
) -> Tensor:
    """Gradient of the currents ``[T, ...]`` of an integer neuron, whose U was ``charged``."""
    return _run(_integer, grad_counts, charged, float(levels), leak, norm)


def _run(steps: Callable, grad_seq: Tensor, charged: Tensor, *constants: float) -> Tensor:
    # in one memory order
    if grad_seq.stride() != charged.stride():
        grad_seq = torch.empty_like(charged).copy_(grad_seq)
    grad_x = _compiled(steps)(_rows(grad_seq), _rows(charged), *constants)
    return grad_x.as_strided(charged.shape, charged.stride())


@cache
def _compiled(steps: Callable) -> Callable:
    # once in a process: made again, it would compile again
    return torch.compile(steps, dynamic=True)


def _rows(seq: Tensor) -> Tensor:
    """The same memory; no view, as the shape of what is viewed would be a reason to compile."""
    size = len(seq), seq[0].numel()
    storage, offset = seq.untyped_storage(), seq.storage_offset()
    return seq.new_empty(0).set_(storage, offset, size, (size[1], 1))


def _lif(
    grad_TN: Tensor, charged_TN: Tensor, tau: float, v_threshold: float, alpha: float
) -> Tensor:
    gradients: list[Tensor] = []
    # the gradient of H[t + 1], over alpha
    later: Tensor | None = None
    for t in reversed(range(len(charged_TN))):
        sigmoid = torch.sigmoid((charged_TN[t] - v_threshold) * alpha)
        grad_charge = grad_TN[t] * (1.0 - sigmoid) * sigmoid
        if later is not None:
            # through the reset where there was no spike
            kept = torch.where(charged_TN[t] < v_threshold, later, 0.0)
            grad_charge = grad_charge + kept * (1.0 - 1.0 / tau)
        gradients.append(grad_charge * (alpha / tau))
        later = grad_charge
    return torch.stack(gradients[::-1])


def _integer(
    grad_TN: Tensor, charged_TN: Tensor, levels: float, leak: float, norm: float
) -> Tensor:
    gradients: list[Tensor] = []
    grad_v: Tensor | None = None
    for t in reversed(range(len(charged_TN))):
        passes = (charged_TN[t] >= 0.0) & (charged_TN[t] <= levels)
        grad_charge = grad_TN[t] / norm
        if grad_v is None:
            grad_charge = torch.where(passes, grad_charge, 0.0)
        else:
            grad_charge = torch.where(passes, grad_charge - grad_v, 0.0) + grad_v
        gradients.append(grad_charge)
        grad_v = grad_charge * leak
    return torch.stack(gradients[::-1])
