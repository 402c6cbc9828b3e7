"""Operations of a network, layer by layer: dense multiply-accumulates, and accumulates of spikes.

MACs take every input for dense: convolutions, linear layers and the products of attention, at
every time step; a first segment without neurons is computed once. Element-wise work is not counted.

Synaptic operations (SOPs) are a layer's MACs times the mean number of spikes of its input, that is
firing rate x T x FLOPs, with T counted once: in the MACs. A layer whose input is not spikes (the
pixels, the output of a layer without a neuron) has MACs and no SOPs. A layer that reads whole
numbers of spikes (integer neurons, a residual stream of summed spikes) needs an accumulate for
each of them, or a MAC for each input: both are told.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from psvit.measure.spikes import SpikeTensors

# Horowitz, ISSCC 2014: 45 nm, 32-bit floating point; what the papers of this field use
MAC_PJ = 4.6
AC_PJ = 0.9
COLUMNS = ["layer", "input", "steps", "macs", "real_macs", "rate", "active", "sops"]

aten = torch.ops.aten
# the operands that may hold spikes: a convolution's or linear layer's input, both of a product
_OPERANDS: dict[object, tuple[int, ...]] = {
    aten.convolution: (0,),
    aten.addmm: (1,),
    aten.mm: (0,),
    aten.bmm: (0, 1),
    aten.baddbmm: (1, 2),
}
# images run together: as many as a network of published size has memory for
_BATCH = 32


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
    """Operations of every layer, a row each in the order they first run, for one image.

    Args:
        network: runs in evaluation mode.
        images: ``[B, C, H, W]`` or ``[B, T, C, H, W]``; firing rates are those on them.

    Returns:
        Columns ``layer`` (module path), ``input`` (``real``; ``spikes``; or ``integer``, where an
        element is more than one spike), ``steps`` (time steps that the layer computes: 1 where
        all steps of an image are the same, T elsewhere), ``macs`` (dense, all steps together),
        ``real_macs`` (of them those whose input is not spikes), ``rate`` (mean spikes of an input
        element a step), ``active`` (share of the input elements that are not 0; both NaN where
        the input is not spikes), ``sops`` (all steps together).
    """
    counter = _Counter()
    once, steps = _time(network, images)
    if images.dim() == 5:
        # events, where they are whole numbers; a still image has pixels
        counter.spikes.add(images)
    with ExitStack() as stack:
        tracker = stack.enter_context(ModuleTracker())
        counter.where = lambda: _innermost(tracker.parents, type(network).__name__)
        for neuron in network.modules():
            if isinstance(neuron, BaseNode):
                stack.enter_context(neuron.register_forward_hook(counter.follow))
        stack.enter_context(counter)
        for batch in images.split(_BATCH):
            _evaluate(network, partial(network, batch))
    nan = float("nan")
    rows = []
    for layer, work in counter.layers.items():
        spiking = work.macs - work.real_macs
        rows.append(
            {
                "layer": layer,
                "input": "integer" if work.integer else "spikes" if spiking else "real",
                "steps": 1 if f"{layer}.".startswith(once) else steps,
                "macs": work.macs / len(images),
                "real_macs": work.real_macs / len(images),
                "rate": work.sops / spiking if spiking else nan,
                "active": work.active / spiking if spiking else nan,
                "sops": work.sops / len(images),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def add_energy(table: pd.DataFrame, mac_pj: float = MAC_PJ, ac_pj: float = AC_PJ) -> pd.DataFrame:
    """``count_operations``'s table with the energy of each layer, in mJ an image.

    Args:
        table: of a network.
        mac_pj: picojoules of a multiply-accumulate.
        ac_pj: picojoules of an accumulate.

    Returns:
        With ``energy_mj``, MACs on what is not spikes and an accumulate for every spike; and
        ``energy_integer_macs_mj``, the same but for layers that read integers: all their MACs.
    """
    # 1 mJ is 10⁹ pJ
    repeated = (mac_pj * table["real_macs"] + ac_pj * table["sops"]) / 1e9
    dense = mac_pj * table["macs"] / 1e9
    return table.assign(
        energy_mj=repeated,
        energy_integer_macs_mj=repeated.where(table["input"] != "integer", dense),
    )


@dataclass
class _Work:
    """Sums over the products of a layer: MACs, those of no spikes, spikes and non-zeros."""

    macs: float = 0.0
    real_macs: float = 0.0
    sops: float = 0.0
    active: float = 0.0
    integer: bool = False


@dataclass
class _Spikes:
    """Of an operand: mean number, share of elements with any, and whether one has several."""

    rate: float
    active: float
    integer: bool


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.spikes = SpikeTensors()
        self.layers: dict[str, _Work] = {}
        self.where: Callable[[], str] = str

    def follow(self, neuron: BaseNode, _inputs, output: Tensor) -> None:
        self.spikes.add(output, getattr(neuron, "norm", 1.0))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _OPERANDS and packet in flop_registry:
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
            layer = self.where()
            found = [self._read(args[index]) for index in _OPERANDS[packet]]
            # an accumulate for each spike of the sparser operand; where one is a sum of spikes, of
            # the other
            spikes = min(filter(None, found), key=lambda x: (x.integer, x.rate), default=None)
            work = self.layers.setdefault(layer, _Work())
            work.macs += macs
            if spikes is None:
                work.real_macs += macs
            else:
                work.sops += macs * spikes.rate
                work.active += macs * spikes.active
                work.integer |= spikes.integer
        self.spikes.follow(func, args, kwargs or {}, out)
        return out

    def _read(self, x: Tensor) -> _Spikes | None:
        """None where the elements are not whole numbers of spikes."""
        norm = self.spikes.norm(x)
        if norm is None:
            return None
        fractions = x * norm
        counts = fractions.round()
        # 7 spikes of 13 are 7.0000005 in float32
        if counts.min() < 0 or (fractions - counts).abs().max() > 1e-3:
            return None
        active = float(counts.count_nonzero()) / counts.numel()
        return _Spikes(float(counts.mean(dtype=torch.float64)), active, bool(counts.max() > 1))


def _time(network: nn.Module, images: Tensor) -> tuple[tuple[str, ...], int]:
    """How the layers' paths begin that see a still image once; the time steps of the others."""
    if images.dim() == 5:
        return (), images.shape[1]
    segments = network.segments().items()
    once = tuple(f"{path}." for path, segment in segments if network.sees_once(segment))
    return once, network.time_steps


def _innermost(parents: set[str], root: str) -> str:
    path = max(parents, key=lambda name: name.count(".") if name != "Global" else -1)
    return path.removeprefix(f"{root}.")


def _evaluate(network: nn.Module, run: Callable[[], object]) -> None:
    training = network.training
    network.eval()
    with torch.no_grad():
        run()
    network.train(training)
