"""Neurons on the CPU as code that ``torch.compile`` makes: a step is one pass over memory.

It is the arithmetic of ``psvit.neurons``, and the same bits: the compiler neither contracts a
product and a sum nor turns a division into a product. What is compiled takes a step's numbers as
one row, in whatever order they lie in memory, so that no layer's shape is a reason to compile
again. Legend: T time steps, N numbers in a step.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from psvit.errors import UserError

# numbers in a call behind which it is the faster: in fewer, calling it takes longer than it saves
_MANY = 2**20

_wanted = False


def compile_neurons(wanted: bool) -> None:
    """Whether neurons on the CPU are compiled from here on.

    A process compiles for some seconds, here and where neurons first run another number of steps.

    Raises:
        UserError: nothing can be compiled here.
    """
    global _wanted
    _wanted = False
    if not wanted:
        return
    try:
        with torch.inference_mode():
            lif(torch.zeros(2, 64), 0.0, 2.0, 1.0, 0.0)
    except Exception as error:  # noqa: BLE001  the compiler's own, as many as there are systems
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            "compile", True, f"expected false, or a C++ compiler that torch finds ({reason})"
        ) from error
    _wanted = True


def serves(x_seq: Tensor) -> bool:
    """Whether the functions below take these currents ``[T, ...]``, and are the faster ones."""
    if not _wanted or x_seq.numel() < _MANY or torch.compiler.is_compiling():
        return False
    plain = x_seq.device.type == "cpu" and x_seq.dtype in (torch.float32, torch.float64)
    step = x_seq[0]
    dense = step.is_contiguous() or (
        step.dim() == 4 and step.is_contiguous(memory_format=torch.channels_last)
    )
    # the steps of a still image are one and the same memory
    return plain and dense and x_seq.stride(0) in (0, step.numel())


def lif(
    x_seq: Tensor,
    v: Tensor | float,
    tau: float,
    v_threshold: float,
    v_reset: float,
    training: bool = False,
) -> tuple[Tensor, ...]:
    """Spikes ``[T, ...]``, the last potential ``[...]``; in training H as well ``[T, ...]``."""
    constants = tau, v_threshold, v_reset, training
    return _as(x_seq, *_compiled(_lif)(_rows(x_seq), _row(v, x_seq), *constants))


def lif_gradient(
    grad_spikes: Tensor, charged: Tensor, tau: float, v_threshold: float, alpha: float
) -> Tensor:
    """Gradient of the currents ``[T, ...]``; ``charged`` is H as ``lif`` gave it."""
    rows = _rows(_ordered(grad_spikes, charged)), _rows(charged)
    return _as(charged, *_compiled(_lif_gradient)(*rows, tau, v_threshold, alpha))[0]


def integer(
    x_seq: Tensor,
    v: Tensor | float,
    levels: int,
    leak: float,
    norm: float,
    training: bool = False,
) -> tuple[Tensor, ...]:
    """Counts over ``norm`` ``[T, ...]``, the last potential; in training U as well."""
    constants = float(levels), leak, norm, training
    return _as(x_seq, *_compiled(_integer)(_rows(x_seq), _row(v, x_seq), *constants))


def integer_gradient(
    grad_counts: Tensor, charged: Tensor, levels: int, leak: float, norm: float
) -> Tensor:
    """Gradient of the currents ``[T, ...]``; ``charged`` is U as ``integer`` gave it."""
    rows = _rows(_ordered(grad_counts, charged)), _rows(charged)
    return _as(charged, *_compiled(_integer_gradient)(*rows, float(levels), leak, norm))[0]


@cache
def _compiled(steps: Callable) -> Callable:
    # once in a process: made again, it would compile again
    return torch.compile(steps, dynamic=True)


def _rows(x_seq: Tensor) -> Tensor:
    return _alias(x_seq, (len(x_seq), x_seq[0].numel()), (x_seq.stride(0), 1))


def _row(v: Tensor | float, x_seq: Tensor) -> Tensor:
    """The potential before the first step: N numbers, or one for all."""
    if not isinstance(v, Tensor):
        return x_seq.new_full((1,), v)
    return _alias(_ordered(v, x_seq[0]), (v.numel(),), (1,))


def _alias(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """The same memory; no view, as the shape of what is viewed would be a reason to compile."""
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    return tensor.new_empty(0).set_(storage, offset, shape, strides)


def _ordered(tensor: Tensor, like: Tensor) -> Tensor:
    """The same numbers, in the memory order of ``like``."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)


def _as(x_seq: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """Rows in the shape and the memory order of the currents, or of one step of them."""
    step = x_seq[0]
    whole = x_seq.shape, (step.numel(), *step.stride())
    return tuple(
        each.as_strided(*(whole if each.dim() == 2 else (step.shape, step.stride())))
        for each in rows
    )


def _lif(
    x_TN: Tensor, v_N: Tensor, tau: float, v_threshold: float, v_reset: float, training: bool
) -> tuple[Tensor, ...]:
    spikes, charged = [], []
    for x in x_TN:
        v_N = v_N + (x - (v_N - v_reset)) / tau
        charged.append(v_N)
        spikes.append((v_N >= v_threshold).to(x.dtype))
        v_N = v_N - v_N * spikes[-1] + spikes[-1] * v_reset
    return (torch.stack(spikes), v_N, *([torch.stack(charged)] if training else []))


def _lif_gradient(
    grad_TN: Tensor, charged_TN: Tensor, tau: float, v_threshold: float, alpha: float
) -> tuple[Tensor]:
    gradients: list[Tensor] = []
    # the gradient of H[t + 1], over alpha
    later: Tensor | None = None
    for t in reversed(range(len(charged_TN))):
        grad, charged = grad_TN[t], charged_TN[t]
        sigmoid = torch.sigmoid((charged - v_threshold) * alpha)
        grad_charge = grad * (1.0 - sigmoid) * sigmoid
        if later is not None:
            # through the reset where there was no spike
            kept = torch.where(charged < v_threshold, later, 0.0)
            grad_charge = grad_charge + kept * (1.0 - 1.0 / tau)
        gradients.append(grad_charge * (alpha / tau))
        later = grad_charge
    return (torch.stack(gradients[::-1]),)


def _integer(
    x_TN: Tensor, v_N: Tensor, levels: float, leak: float, norm: float, training: bool
) -> tuple[Tensor, ...]:
    counts, charged = [], []
    for x in x_TN:
        charged.append(x + v_N * leak)
        count = charged[-1].clamp(0.0, levels).round()
        v_N = charged[-1] - count
        counts.append(count / norm)
    return (torch.stack(counts), v_N, *([torch.stack(charged)] if training else []))


def _integer_gradient(
    grad_TN: Tensor, charged_TN: Tensor, levels: float, leak: float, norm: float
) -> tuple[Tensor]:
    gradients: list[Tensor] = []
    grad_v: Tensor | None = None
    for t in reversed(range(len(charged_TN))):
        grad, charged = grad_TN[t], charged_TN[t]
        passes = (charged >= 0.0) & (charged <= levels)
        grad_count = grad / norm
        if grad_v is None:
            grad_charge = torch.where(passes, grad_count, 0.0)
        else:
            grad_charge = torch.where(passes, grad_count - grad_v, 0.0) + grad_v
        gradients.append(grad_charge)
        grad_v = grad_charge * leak
    return (torch.stack(gradients[::-1]),)
