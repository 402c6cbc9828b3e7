"""Operations of a network, layer by layer: dense multiply-accumulates, and accumulates of spikes.

MACs take every input for dense: convolutions, linear layers and the products of attention, at
every time step; what precedes the first neuron is computed once. Element-wise work is not counted.

Synaptic operations (SOPs) are a layer's MACs times the mean number of spikes of its input, that is
firing rate x T x FLOPs, with T counted once: in the MACs. A layer whose input is not spikes (the
pixels, the output of a layer without a neuron) has MACs and no SOPs.
"""

from collections.abc import Callable
from contextlib import ExitStack

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from psvit.neurons import IntegerLIF

aten = torch.ops.aten
# the operands that may hold spikes: a convolution's or linear layer's input, both of a product
_OPERANDS: dict[object, tuple[int, ...]] = {
    aten.convolution: (0,),
    aten.addmm: (1,),
    aten.mm: (0,),
    aten.bmm: (0, 1),
    aten.baddbmm: (1, 2),
}


def count_macs(network: nn.Module) -> int:
    """Dense MACs of one image at the network's resolution; it may lie on the meta device."""
    spec = network.spec
    pixels = spec["image_size"]
    device = next(network.parameters()).device
    image = torch.empty(1, spec["in_channels"], pixels, pixels, device=device)
    with FlopCounterMode(display=False) as counter:
        _evaluate(network, lambda: network(image.to(next(network.parameters()).dtype)))
    # the counter takes a multiply-accumulate for two operations
    return counter.get_total_flops() // 2


def count_operations(network: nn.Module, images: Tensor) -> pd.DataFrame:
    """Operations of every layer, a row each in the order they first run.

    Args:
        network: runs in evaluation mode.
        images: ``[B, C, H, W]`` or ``[B, T, C, H, W]``; firing rates are those on them.

    Returns:
        Columns ``layer`` (module path), ``macs`` (dense, one image, all time steps), ``rate`` (mean
        spikes of an input element a step; NaN where the input is not spikes), ``sops``.
    """
    levels = max(
        (neuron.norm for neuron in network.modules() if isinstance(neuron, IntegerLIF)), default=1.0
    )
    counter = _Counter(levels)
    with ExitStack() as stack:
        tracker = stack.enter_context(ModuleTracker())
        counter.where = lambda: _innermost(tracker.parents, type(network).__name__)
        stack.enter_context(counter)
        _evaluate(network, lambda: network(images))
    rows = []
    for layer, products in counter.layers.items():
        macs = sum(macs for macs, _ in products)
        sops = sum(macs * rate for macs, rate in products if rate is not None)
        spiking = sum(macs for macs, rate in products if rate is not None)
        rows.append(
            {
                "layer": layer,
                "macs": macs / len(images),
                "rate": sops / spiking if spiking else float("nan"),
                "sops": sops / len(images),
            }
        )
    return pd.DataFrame(rows, columns=["layer", "macs", "rate", "sops"])


class _Counter(TorchDispatchMode):
    def __init__(self, levels: float):
        super().__init__()
        self.levels = levels
        # layer -> (MACs, mean spikes of the operand, or None where it holds no spikes)
        self.layers: dict[str, list[tuple[int, float | None]]] = {}
        self.where: Callable[[], str] = str

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _OPERANDS and packet in flop_registry:
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
            rates = [self._spikes(args[index]) for index in _OPERANDS[packet]]
            # an accumulate for each spike of the sparser operand
            rate = min((rate for rate in rates if rate is not None), default=None)
            self.layers.setdefault(self.where(), []).append((macs, rate))
        return out

    def _spikes(self, x: Tensor) -> float | None:
        """Mean number of spikes, or None where the elements are not whole numbers of them."""
        counts = x * self.levels
        if counts.min() < 0 or not torch.equal(counts, counts.round()):
            return None
        return float(counts.mean())


def _innermost(parents: set[str], root: str) -> str:
    path = max(parents, key=lambda name: name.count(".") if name != "Global" else -1)
    return path.removeprefix(f"{root}.")


def _evaluate(network: nn.Module, run: Callable[[], object]) -> None:
    training = network.training
    network.eval()
    with torch.no_grad():
        run()
    network.train(training)
