"""What a user has without this project: spikingjelly's neurons, and a copy cut for every point."""

import copy
from collections.abc import Sequence

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from psvit.measure.accuracy import Tally
from psvit.neurons import LIF, IntegerLIF
from psvit.pruning import prune
from psvit.pruning.ranking import Ranking

Batches = Sequence[tuple[Tensor, Tensor]]


class StockInteger(nn.Module):
    """spikingjelly's integer neuron, and the division that the networks want."""

    def __init__(self, ours: IntegerLIF):
        super().__init__()
        self.neuron = neuron.ILIFNode(surrogate_function=ours.surrogate_function, step_mode="m")
        self.norm = ours.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x) / self.norm


def stock(network: nn.Module) -> nn.Module:
    """The same network with spikingjelly's own neurons, in torch's usual order in memory."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, LIF):
                setattr(module, name, stock_lif(child))
            elif isinstance(child, IntegerLIF):
                setattr(module, name, StockInteger(child))
    return network


def stock_lif(ours: LIF) -> nn.Module:
    """spikingjelly's neuron in place of ours."""
    return neuron.LIFNode(
        tau=ours.tau,
        v_threshold=ours.v_threshold,
        surrogate_function=ours.surrogate_function,
        detach_reset=True,
        step_mode="m",
    )


def sensitivity(
    network: nn.Module, batches: Batches, ratios: Sequence[float], ranking: Ranking
) -> list[tuple[str, float, Tally]]:
    """(group, ratio, tally): for each point a copy is cut, and run whole on all images."""
    rows = []
    for name in ranking.groups:
        for ratio in ratios:
            pruned = prune(network, ranking.plan({name: ranking.units(name, ratio)})).eval()
            tally = Tally()
            with torch.inference_mode():
                for images, labels in batches:
                    tally.add(pruned(images), labels)
            rows.append((name, ratio, tally))
    return rows
