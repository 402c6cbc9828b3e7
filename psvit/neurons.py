"""Spiking neurons: spikingjelly's semantics, with a lean multi-step path on the CPU.

Tensors are ``[T, B, C, H, W]`` (T time steps, B batch, C channels, H x W pixels).
"""

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
            x_seq.device.type == "cpu"
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
                x_seq, self.v, self.tau, self.v_threshold, self.v_reset,
                self.surrogate_function.alpha,
            )
            return spikes
        return super().multi_step_forward(x_seq, *args, **kwargs)


def _lif_inference(
    x_seq: Tensor, v: Tensor | float, tau: float, v_threshold: float, v_reset: float
) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, ...]`` and the last membrane potential ``[...]``."""
    spikes = torch.empty_like(x_seq, memory_format=torch.contiguous_format)
    for t in range(x_seq.shape[0]):
        v = _charge(x_seq[t], v, tau, v_reset)
        fired = v >= v_threshold
        spikes[t] = fired
        v.masked_fill_(fired, v_reset)
    return spikes, v


def _charge(x: Tensor, v: Tensor | float, tau: float, v_reset: float) -> Tensor:
    """H[t] in a new tensor, rounded as spikingjelly rounds it."""
    if isinstance(v, float):
        return (x - (v - v_reset)).div_(tau).add_(v)
    leak = v if v_reset == 0.0 else v - v_reset
    return (x - leak).div_(tau).add_(v)


class _LIFTraining(torch.autograd.Function):
    """LIF with detached hard reset; keeps H[t] only, from which the spikes are recomputed."""

    @staticmethod
    def forward(ctx, x_seq, v, tau, v_threshold, v_reset, alpha):
        charged = torch.empty_like(x_seq, memory_format=torch.contiguous_format)
        spikes = torch.empty_like(charged)
        for t in range(x_seq.shape[0]):
            charge = _charge(x_seq[t], v, tau, v_reset)
            charged[t] = charge
            fired = charge >= v_threshold
            spikes[t] = fired
            v = charge.masked_fill_(fired, v_reset)
        ctx.save_for_backward(charged)
        ctx.constants = tau, v_threshold, alpha
        ctx.mark_non_differentiable(v)
        return spikes, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes, _grad_v):
        (charged,) = ctx.saved_tensors
        tau, v_threshold, alpha = ctx.constants
        grad_x = torch.empty_like(charged)
        grad_v: Tensor | None = None
        for t in reversed(range(charged.shape[0])):
            over = charged[t] - v_threshold
            sigmoid = torch.sigmoid(over * alpha)
            grad_charge = (1.0 - sigmoid).mul_(sigmoid).mul_(alpha).mul_(grad_spikes[t])
            if grad_v is not None:
                grad_charge.add_(grad_v.masked_fill_(over >= 0.0, 0.0))
            torch.div(grad_charge, tau, out=grad_x[t])
            grad_v = grad_charge.mul_(1.0 - 1.0 / tau)
        return grad_x, None, None, None, None, None
