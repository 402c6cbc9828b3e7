"""Spiking neurons: spikingjelly's semantics, with a lean multi-step path on the CPU.

Tensors are ``[T, B, C, H, W]`` (T time steps, B batch, C channels, H x W pixels).
"""

import math
from functools import partial

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from psvit import compiled


def reset_state(model: nn.Module) -> None:
    """Forget every membrane potential in ``model``.

    The one place where state is reset: ``SpikingTransformer.run`` calls it before each batch, in
    training, evaluation, sensitivity analysis and measurement alike.
    """
    functional.reset_net(model)


class LIF(neuron.LIFNode):
    """Multi-step leaky integrate-and-fire neuron with the published networks' constants.

    H[t] = V[t-1] + (X[t] - (V[t-1] - V_reset)) / tau; a spike where H[t] >= V_threshold; hard
    reset to V_reset, detached. Same spikes, bit for bit, and the same gradients as
    ``spikingjelly.activation_based.neuron.LIFNode``, whose state and reset it uses.

    spikingjelly's CPU path makes several full-size temporaries a step. Here inference works in
    place, and training saves H alone and recomputes the rest. Anything else (other devices,
    surrogates, soft reset, state carried over in training) takes spikingjelly's own path.

    Args:
        tau: membrane time constant in time steps, above 1.
        v_threshold: firing threshold.
    """

    v: Tensor | float

    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0):
        super().__init__(
            tau=float(tau),
            v_threshold=float(v_threshold),
            surrogate_function=surrogate.Sigmoid(),
            detach_reset=True,
            step_mode="m",
        )

    def multi_step_forward(self, x_seq: Tensor, *args, **kwargs) -> Tensor:
        lean = (
            x_seq.device.type in ("cpu", "meta")
            and self.decay_input
            and self.v_reset is not None
            and not self.store_v_seq
            and self._neuron_precision is None
        )
        if lean and not (torch.is_grad_enabled() and x_seq.requires_grad):
            spikes, self.v = _lif_inference(x_seq, self.v, self.tau, self.v_threshold, self.v_reset)
            return spikes
        if (
            lean
            and isinstance(self.v, float)
            and self.detach_reset
            and type(self.surrogate_function) is surrogate.Sigmoid
        ):
            spikes, self.v = _LIFTraining.apply(
                x_seq,
                self.v,
                self.tau,
                self.v_threshold,
                self.v_reset,
                self.surrogate_function.alpha,
            )
            return spikes
        return super().multi_step_forward(x_seq, *args, **kwargs)


class IntegerLIF(neuron.ILIFNode):
    """Multi-step integer neuron: the number of spikes out of ``levels``, as a fraction.

    U[t] = beta * V[t-1] + X[t];  C[t] = round(clip(U[t], 0, D));  V[t] = U[t] - C[t];  it emits
    C[t] / norm. Spike-driven Transformer V3 (arXiv 2411.16061), whose released networks have T = 1
    and so no decay to choose: beta = 1/4 is that of I-LIF (arXiv 2407.20708) and spikingjelly.
    Same counts and the same gradients as ``spikingjelly.activation_based.neuron.ILIFNode``, whose
    state, rounding and surrogate it uses, without the temporaries of its CPU path. Gradients pass
    where 0 <= U <= D; they do not reach back into an earlier call.

    Args:
        levels: D, the most spikes a step.
        norm: what the count is divided by; None for ``levels``.
    """

    v: Tensor | float

    def __init__(self, levels: int = 4, norm: float | None = None):
        super().__init__(surrogate_function=surrogate.MultiLevelSpikeCount(levels), step_mode="m")
        self.norm = float(levels if norm is None else norm)

    def multi_step_forward(self, x_seq: Tensor, *args, **kwargs) -> Tensor:
        lean = (
            not self.store_v_seq
            and self.v_threshold == 1.0
            and not self.detach_reset
            and isinstance(self.surrogate_function, surrogate.MultiLevelSpikeCount)
        )
        if not lean:
            return super().multi_step_forward(x_seq, *args, **kwargs) / self.norm
        levels, leak = self.surrogate_function.max_spike_count, 1.0 - 1.0 / self.tau
        run = _IntegerTraining.apply if torch.is_grad_enabled() else _integer_inference
        counts, self.v = run(x_seq, self.v, levels, leak, self.norm)
        return counts


# Comparisons write 0.0 and 1.0 straight into the spikes, and a reset subtracts what fired: on the
# CPU, boolean masks take ten times as long. Both are exact.


def _lif_inference(
    x_seq: Tensor, v: Tensor | float, tau: float, v_threshold: float, v_reset: float
) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, ...]`` and the last membrane potential ``[...]``."""
    spikes = torch.empty_like(x_seq)
    # the state that came in is left as it was
    potential = torch.empty_like(spikes[0])
    for x, spike in zip(x_seq, spikes, strict=True):
        v = _charge(x, v, tau, v_reset, out=potential)
        torch.ge(v, v_threshold, out=spike)
        _reset(v, spike, v_reset, out=v)
    return spikes, v


def _charge(x: Tensor, v: Tensor | float, tau: float, v_reset: float, out: Tensor) -> Tensor:
    """H[t], rounded as spikingjelly rounds it; ``out`` may be ``v``."""
    if isinstance(v, float) and v == v_reset == 0.0:
        return torch.div(x, tau, out=out)
    if v_reset == 0.0 and isinstance(v, Tensor) and math.frexp(tau)[0] == 0.5:
        # a power of two divides exactly: V - (V - X) / tau is one pass, and rounded alike
        return torch.lerp(x, v, 1.0 - 1.0 / tau, out=out)
    charge = torch.sub(x, v if v_reset == 0.0 else v - v_reset)
    return torch.add(charge.div_(tau), v, out=out)


def _reset(charge: Tensor, spike: Tensor, v_reset: float, out: Tensor) -> Tensor:
    """V[t]: v_reset where there was a spike, else H[t]."""
    torch.addcmul(charge, charge, spike, value=-1, out=out)
    return out if v_reset == 0.0 else out.add_(spike, alpha=v_reset)


class _LIFTraining(torch.autograd.Function):
    """LIF with detached hard reset; keeps H[t] only, from which the spikes are recomputed."""

    @staticmethod
    def forward(ctx, x_seq, v, tau, v_threshold, v_reset, alpha):
        charged = torch.empty_like(x_seq)
        spikes = torch.empty_like(charged)
        potential = torch.empty_like(charged[0])
        for x, charge, spike in zip(x_seq, charged, spikes, strict=True):
            _charge(x, v, tau, v_reset, out=charge)
            torch.ge(charge, v_threshold, out=spike)
            v = _reset(charge, spike, v_reset, out=potential)
        ctx.save_for_backward(charged)
        ctx.constants = tau, v_threshold, alpha
        ctx.mark_non_differentiable(v)
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes, _grad_v):
        (charged,) = ctx.saved_tensors
        tau, v_threshold, alpha = ctx.constants
        if compiled.serves(charged):
            grad_x = compiled.lif_gradient(grad_spikes, charged, tau, v_threshold, alpha)
            return grad_x, None, None, None, None, None
        grad_x = torch.empty_like(charged)
        # the gradient of H[t + 1], over alpha: a scale applied once, not in every step
        later: Tensor | None = None
        for t in reversed(range(charged.shape[0])):
            sigmoid = torch.sub(charged[t], v_threshold).mul_(alpha).sigmoid_()
            grad_charge = torch.ops.aten.sigmoid_backward(grad_spikes[t], sigmoid)
            if later is not None:
                # through the reset where there was no spike; hardtanh's gradient is such a mask
                kept = torch.ops.aten.hardtanh_backward(later, charged[t], -torch.inf, v_threshold)
                grad_charge.add_(kept, alpha=1.0 - 1.0 / tau)
            torch.mul(grad_charge, alpha / tau, out=grad_x[t])
            later = grad_charge
        return grad_x, None, None, None, None, None


def _integer_inference(
    x_seq: Tensor,
    v: Tensor | float,
    levels: int,
    leak: float,
    norm: float,
    charged: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Counts over ``norm`` ``[T, ...]`` and the last potential; U[t] goes into ``charged``."""
    counts = torch.empty_like(x_seq)
    for t, (x, count) in enumerate(zip(x_seq, counts, strict=True)):
        if _at_rest(v):
            # U is X itself: a pass over memory less, all of them where T = 1
            charge = x if charged is None or charged is x_seq else charged[t].copy_(x)
        else:
            charge = torch.empty_like(count) if charged is None else charged[t]
            torch.add(x, v * leak, out=charge)
        torch.clamp(charge, 0, levels, out=count).round_()
        v = charge - count
    return counts.div_(norm), v


def _at_rest(v: Tensor | float) -> bool:
    return isinstance(v, float) and v == 0.0


class _IntegerTraining(torch.autograd.Function):
    """Integer neuron; keeps U[t] only. Gradients pass where 0 <= U <= D."""

    @staticmethod
    def forward(ctx, x_seq, v, levels, leak, norm):
        charged = x_seq if len(x_seq) == 1 and _at_rest(v) else torch.empty_like(x_seq)
        counts, v = _integer_inference(x_seq, v, levels, leak, norm, charged)
        ctx.save_for_backward(charged)
        ctx.constants = levels, leak, norm
        ctx.mark_non_differentiable(v)
        return counts, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_counts, _grad_v):
        (charged,) = ctx.saved_tensors
        levels, leak, norm = ctx.constants
        if compiled.serves(charged):
            grad_x = compiled.integer_gradient(grad_counts, charged, levels, leak, norm)
            return grad_x, None, None, None, None
        # hardtanh's gradient leaves its bounds out, the neuron's holds them
        bounds = torch.tensor([0.0, levels], dtype=charged.dtype)
        low, high = torch.nextafter(bounds, torch.tensor([-torch.inf, torch.inf]).to(bounds))
        passes = partial(torch.ops.aten.hardtanh_backward, min_val=low.item(), max_val=high.item())
        if len(charged) == 1:
            return passes(grad_counts, charged).div_(norm), None, None, None, None
        grad_x = torch.empty_like(charged)
        grad_v: Tensor | None = None
        for t in reversed(range(charged.shape[0])):
            grad_count = grad_counts[t] / norm
            if grad_v is None:
                grad_charge = passes(grad_count, charged[t])
            else:
                grad_charge = passes(grad_count.sub_(grad_v), charged[t]).add_(grad_v)
            grad_x[t] = grad_charge
            grad_v = grad_charge.mul_(leak)
        return grad_x, None, None, None, None
