"""Knowledge distillation: a pruned network that follows the base network it was cut from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence between softened outputs (Hinton et al., arXiv 1503.02531).

    KL(softmax(teacher / τ) ‖ softmax(student / τ)) · τ², mean over the batch. The factor keeps the
    gradient's size whatever the temperature.

    Args:
        student: logits ``[B, classes]``.
        teacher: logits ``[B, classes]``.
        temperature: τ.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


@contextmanager
def firing_rates(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Fills a dict with each neuron layer's mean output of every image, ``[B]``, as it runs.

    Layers, not channels: a pruned network has fewer channels than its teacher.
    """
    rates: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_module: nn.Module, _inputs: tuple, spikes: Tensor) -> None:
            rates[name] = spikes.mean([0, *range(2, spikes.dim())])

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in network.named_modules()
        if isinstance(module, MemoryModule)
    ]
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()


def rates_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Mean over neuron layers and images of the squared difference of firing rates."""
    differences = [(student[name] - teacher[name]) ** 2 for name in student if name in teacher]
    return torch.stack(differences).mean()
