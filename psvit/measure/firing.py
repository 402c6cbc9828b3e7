"""How often neurons fire: rates, silent and saturated channels, before and after a cut.

Tensors are ``[T, B, C, H, W]`` (T time steps, B batch, C channels, H x W pixels).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pandas as pd
import torch
from spikingjelly.activation_based.neuron import BaseNode, ILIFNode
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.measure.layout import neurons, views, watch_emitted
from psvit.neurons import reset_state

# A channel that fires its most in 99 of 100 (step, position, image) says nothing about the image.
SATURATED = 0.99
# between the names in the column ``group``
SEPARATOR = ", "
NAN = float("nan")

Batches = Iterable[tuple[Tensor, Tensor]]


class Firing:
    """What the neurons of a network emitted since they are watched; see ``watch_firing``."""

    def __init__(self) -> None:
        # layer -> summed output of each channel, as shares of the most; outputs a channel
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, layer: str, fired: Tensor, outputs: int, again: bool = False) -> None:
        """Count a call: ``fired`` ``[C]``, summed over the ``outputs`` that a channel has.

        ``again``: in place of what was counted of the layer.
        """
        if layer in self._sums and not again:
            fired, outputs = fired + self._sums[layer][0], outputs + self._sums[layer][1]
        self._sums[layer] = fired, outputs

    def rates(self) -> dict[str, Tensor]:
        """Layer (module path) -> rate of each channel, in the order the layers first ran.

        A rate is the mean output a step, position and image, as a share of the most that the neuron
        can emit: 1 spike, or an integer neuron's D.
        """
        return {layer: fired.cpu() / outputs for layer, (fired, outputs) in self._sums.items()}

    def table(self) -> pd.DataFrame:
        """A row a neuron layer: ``layer``, ``channels``, ``rate`` (mean over the channels),
        ``silent`` (share of the channels that never fired), ``saturated`` (share with a rate of
        at least ``SATURATED``)."""
        rows = [
            {
                "layer": layer,
                "channels": len(rates),
                "rate": float(rates.mean()),
                "silent": float((rates == 0).double().mean()),
                "saturated": float((rates >= SATURATED).double().mean()),
            }
            for layer, rates in self.rates().items()
        ]
        return pd.DataFrame(rows)

    def channels(self) -> pd.DataFrame:
        """A row a channel of a neuron layer: ``layer``, ``channel``, ``rate``."""
        return pd.DataFrame(
            [
                {"layer": layer, "channel": channel, "rate": rate}
                for layer, rates in self.rates().items()
                for channel, rate in enumerate(rates.tolist())
            ]
        )

    def summary(self) -> dict[str, float | None]:
        """Of the whole network: ``firing_rate``, the mean over all neurons (a layer counts by its
        channels and positions); ``silent_channels`` and ``saturated_channels``, shares. None each
        where there is no neuron, as in a teacher without spikes."""
        if not self._sums:
            return dict.fromkeys(("firing_rate", "silent_channels", "saturated_channels"))
        rates = torch.cat(list(self.rates().values()))
        neurons = torch.cat(
            [torch.full((len(fired),), float(n)) for fired, n in self._sums.values()]
        )
        return {
            "firing_rate": float((rates * neurons).sum() / neurons.sum()),
            "silent_channels": float((rates == 0).double().mean()),
            "saturated_channels": float((rates >= SATURATED).double().mean()),
        }


@contextmanager
def watch_firing(network: nn.Module) -> Iterator[Firing]:
    """Count what every neuron layer emits while ``network`` runs inside."""
    firing = Firing()

    def count(path: str, spikes: Tensor, again: bool) -> None:
        most = _most(network.get_submodule(path))
        fired = spikes.sum((0, 1, 3), dtype=torch.float64) / most
        firing.add(path, fired, spikes.numel() // len(fired), again)

    with watch_emitted(network, count):
        yield firing


def measure_firing(network: nn.Module, batches: Batches, device: torch.device) -> pd.DataFrame:
    """Firing of every neuron layer, in evaluation mode, over batches of (images, labels).

    Returns:
        ``Firing.table``'s columns, in the order that the layers first run.

    Raises:
        ValueError: there is no batch.
    """
    # before: weights that moved in inference mode could not be trained afterwards
    network.eval().to(device)
    with torch.inference_mode(), watch_firing(network) as firing:
        for images, _ in batches:
            network(images.to(device))
    reset_state(network)
    if not firing.rates():
        raise ValueError("no batch to measure firing on")
    return firing.table()


def diagnose(
    base: nn.Module, pruned: nn.Module, batches: Batches, device: torch.device
) -> pd.DataFrame:
    """What a cut did to the firing of every neuron layer.

    Rates are means over the channels that a network has: a cut that takes quiet channels raises
    the rate of its layer though no neuron fires more.

    Args:
        base: the network before the cut.
        pruned: the network after it, recovered or fine-tuned or not.
        batches: (images, labels); read several times, and the same images each time: a list.
        device: where both run.

    Returns:
        A row a neuron layer of ``pruned``, in the order they run: ``layer`` (module path),
        ``segment``, ``group`` (the channel groups that its channels belong to, joined by
        ``SEPARATOR``; empty for none), ``rate_base``, ``rate``, ``drift`` (``rate - rate_base``),
        and ``channels``, ``silent``, ``saturated`` with their ``_base``; see ``measure_firing``.
    """
    before, after = (measure_firing(network, batches, device) for network in (base, pruned))
    rows = after.merge(before, on="layer", how="left", suffixes=("", "_base"))
    image = next(iter(batches))[0][:1].to(device)
    groups = neuron_groups(pruned, image)
    rows["segment"] = [_segment(pruned, layer) for layer in rows["layer"]]
    rows["group"] = [SEPARATOR.join(groups.get(layer, [])) for layer in rows["layer"]]
    rows["drift"] = rows["rate"] - rows["rate_base"]
    columns = ["layer", "segment", "group", "rate_base", "rate", "drift"]
    for measured in ("silent", "saturated", "channels"):
        columns += [f"{measured}_base", measured]
    return rows[columns]


@torch.inference_mode()
def neuron_groups(network: nn.Module, image: Tensor) -> dict[str, list[str]]:
    """The channel groups that the channels of each neuron layer belong to.

    Followed through the network as it runs, so that it holds for any block. Wherever a producer
    writes the first unit of a group, not-a-numbers are planted; neurons hand them on, and what
    mixes channels ends them: a consumer, or a product of the group's own ``neurons``. A neuron
    that meets them in exactly the channels of that unit is one of the group's.

    Args:
        network: with ``channel_groups()``; in evaluation mode.
        image: ``[1, C, H, W]`` or ``[1, T, C, H, W]``; its values do not matter.

    Returns:
        Neuron layer (module path) -> names of groups; a layer of no group is absent.
    """
    segments = network.segments()
    reset_state(network)
    # what enters each segment, of a single step
    entering, x = [], network.encode(image)[:1]
    for segment in segments.values():
        entering.append(x)
        x = network.step(segment, x)
    order = {path: index for index, path in enumerate(segments)}
    found: dict[str, list[str]] = {}
    for group in network.channel_groups().values():
        paths = (*group.producers, *group.consumers, *group.neurons)
        touched = sorted(order[_segment(network, path)] for path in paths)
        reset_state(network)
        with ExitStack() as hooks:
            _plant(network, group, found, hooks)
            x = entering[touched[0]]
            for segment in list(segments.values())[touched[0] : touched[-1] + 1]:
                x = network.step(segment, x)
    reset_state(network)
    return found


def _plant(
    network: nn.Module, group: ChannelGroup, found: dict[str, list[str]], hooks: ExitStack
) -> None:
    """Hook ``network`` so that a run notes in ``found`` the neurons that ``group`` reaches."""

    def mark(module: nn.Module, _inputs, output: Tensor) -> Tensor:
        axis = -1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1
        unit = torch.arange(output.shape[axis] // group.size, device=output.device)
        return output.index_fill(axis, unit, NAN)

    def end(_module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.nan_to_num(0.0) for x in inputs)

    def follow(path: str) -> Callable:
        shown = views(network, path)

        def hook(_module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            marked = inputs[0].isnan()
            if any(_is_first_unit(view(marked), group) for view in shown):
                found.setdefault(path, []).append(group.name)
            silent = torch.zeros_like(output)
            return silent if path in group.neurons else silent.masked_fill_(marked, NAN)

        return hook

    for path in group.producers:
        hooks.enter_context(network.get_submodule(path).register_forward_hook(mark))
    for path in group.consumers:
        hooks.enter_context(network.get_submodule(path).register_forward_pre_hook(end))
    for path, neuron in neurons(network).items():
        hooks.enter_context(neuron.register_forward_hook(follow(path)))


def _is_first_unit(marked: Tensor, group: ChannelGroup) -> bool:
    """Whether the channels of ``[T, B, C, positions]`` with a mark are the group's first unit."""
    channels = marked.transpose(0, 2).flatten(1).any(1)
    unit, rest = divmod(len(channels), group.size)
    return bool(not rest and channels[:unit].all() and not channels[unit:].any())


def _most(neuron: BaseNode) -> float:
    """The largest value that a neuron emits."""
    if isinstance(neuron, ILIFNode):
        return neuron.surrogate_function.max_spike_count / getattr(neuron, "norm", 1.0)
    return 1.0


def _segment(network: nn.Module, path: str) -> str:
    """The segment of the chain that a module stands in."""
    return next(s for s in network.segments() if f"{path}.".startswith(f"{s}."))
