"""What every spiking transformer here is: a chain of segments that knows its channel groups."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

from spikingjelly.activation_based.base import MemoryModule
from torch import Tensor, nn

from psvit.channels import INPUT, OUTPUT, ChannelGroup, axis_length, is_depthwise
from psvit.errors import UserError
from psvit.models.checks import check_counts, check_rate
from psvit.models.ports import Ports, stream_groups
from psvit.neurons import reset_state


class SpikingTransformer(nn.Module):
    """A chain of segments (stem, blocks, head).

    A family fills the chain in its constructor: child modules that are ``nn.Sequential`` stages
    (each of their children is one segment) or single segments, in the order they run. A first
    segment without neurons sees an image once; time begins behind it.
    Blocks declare their channels (``channel_groups``) and where they meet the residual stream
    (``residual_ports``); the streams' groups follow from the chain.

    Args:
        time_steps: steps for which a static image is shown; event frames bring their own.
    """

    def __init__(self, time_steps: int):
        super().__init__()
        check_counts(time_steps=time_steps)
        self.time_steps = time_steps

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """What Python would give, in a third of the time: each try of a plan copies a network."""
        return _deep_copy(self, memo)

    def segments(self) -> dict[str, nn.Module]:
        """The chain, in order: path -> module."""
        chain: dict[str, nn.Module] = {}
        for name, child in self.named_children():
            if isinstance(child, nn.Sequential):
                chain.update({f"{name}.{part}": module for part, module in child.named_children()})
            else:
                chain[name] = child
        return chain

    def encode(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> what enters the first segment.

        ``[T, B, C, H, W]``. An image is shown at every step: a view whose steps are one tensor.
        """
        return x.expand(self.time_steps, *x.shape) if x.dim() == 4 else x.transpose(0, 1)

    def run(self, x: Tensor, start: int = 0) -> Tensor:
        """Run the chain from segment ``start`` on the tensor that enters it; ``[B, classes]``."""
        reset_state(self)
        for segment in list(self.segments().values())[start:]:
            x = self.step(segment, x)
        return x

    def step(self, segment: nn.Module, x: Tensor) -> Tensor:
        """Run one segment of the chain on what enters it."""
        shown_again = x.shape[0] > 1 and x.stride(0) == 0
        if shown_again and self.sees_once(segment):
            # before the first neuron, every step of an image is the same: computed once
            return segment(x[:1]).expand(x.shape[0], *(-1,) * (x.dim() - 1))
        return segment(x)

    def sees_once(self, segment: nn.Module) -> bool:
        """Whether a segment computes an image once: the first, if nothing there has a state."""
        first = segment is next(iter(self.segments().values()))
        return first and not any(isinstance(module, MemoryModule) for module in segment.modules())

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``."""
        return self.run(self.encode(x))

    def channel_groups(self) -> dict[str, ChannelGroup]:
        """All channel groups, by readable name: those inside blocks, then those between them.

        Where ``optimize_for_inference`` has folded a batch norm, its convolution stands for it.

        Raises:
            UserError: two groups cut the same layer, which has a name in each of two blocks; or a
                unit of a group is no whole number of a layer's channels.
        """
        groups: dict[str, ChannelGroup] = {}
        modules = dict(self.named_modules())
        for path, module in modules.items():
            if path and hasattr(module, "channel_groups"):
                for group in module.channel_groups():
                    group = group.within(path)
                    groups[group.name] = group
        for group in stream_groups(self, self.segments()):
            groups[group.name] = group
        _check_layers(self, groups.values())
        return {name: _as_folded(group, modules) for name, group in groups.items()}

    def init_weights(self, branch_gain: float = 1.5, branch_bias: float = 0.3) -> None:
        """Kaiming-normal convolutions, and batch norms that make neurons fire from the first batch.

        The published initialisation (BN weight 1, bias 0) leaves the attention and the classifier
        of a small network silent. Behind a silent neuron BN divides by the root of its eps, and
        the gradients explode.

        Args:
            branch_gain: BN weight where a branch adds to the residual stream. A small one keeps
                the stream's variance from growing with depth (Goyal et al., arXiv 1706.02677,
                take 0 for the last BN of a block).
            branch_bias: BN bias there.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.constant_(module.weight, 1.5)
                nn.init.constant_(module.bias, 0.3)
        for segment in self.segments().values():
            ports = segment.residual_ports() if hasattr(segment, "residual_ports") else Ports()
            for path in ports.writes if ports.residual else ():
                module = segment.get_submodule(path)
                if isinstance(module, nn.BatchNorm2d) and module.affine:
                    nn.init.constant_(module.weight, branch_gain)
                    nn.init.constant_(module.bias, branch_bias)


def _check_layers(network: nn.Module, groups: Iterable[ChannelGroup]) -> None:
    """A layer of two blocks cannot lose channels in one of them, nor a layer parts of channels."""
    named: dict[tuple[nn.Module, str], str] = {}
    for group in groups:
        ends = (("producers", group.producers, OUTPUT), ("consumers", group.consumers, INPUT))
        for end, paths, axis in ends:
            for path in paths:
                module = network.get_submodule(path)
                known = named.setdefault((module, end), path)
                reason = _uncuttable(module, axis, group.size)
                if known != path:
                    reason = f"is {known}, too: expected one name, and one group, of a layer to cut"
                if reason:
                    raise UserError(f"{group.name}.{end}", path, reason)


def _uncuttable(module: nn.Module, axis: int, size: int) -> str | None:
    """Why a layer cannot lose any of ``size`` units along an axis; None where it can."""
    grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    if grouped and (axis == INPUT or not is_depthwise(module)):
        depthwise = "" if axis == INPUT else ", or a depthwise one"
        return f"has {module.groups} groups: expected a convolution without any{depthwise}"
    if not hasattr(module, "weight"):
        # a batch norm that is folded or was left out
        return None
    # the filters of a depthwise convolution's channel go together
    length = module.in_channels if grouped else axis_length(module, axis)
    if length % size:
        return f"has {length} channels: expected a multiple of the group's {size} units"
    return None


def _as_folded(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> ChannelGroup:
    """The group, with a batch norm that is folded named by its convolution (``batch_norms``)."""

    def named(path: str) -> str:
        block, _, name = path.rpartition(".")
        if isinstance(modules.get(path), nn.Identity):
            for convolution, batch_norm in getattr(modules[block], "batch_norms", ()):
                if batch_norm == name:
                    return f"{block}.{convolution}"
        return path

    return replace(
        group,
        producers=tuple(dict.fromkeys(map(named, group.producers))),
        silenced=tuple(dict.fromkeys(map(named, group.silenced))),
    )


def spread_drop_path(rate: float, blocks: int) -> list[float]:
    """Stochastic-depth rates growing linearly from 0 to ``rate`` over the blocks.

    Raises:
        UserError: a rate outside [0, 1).
    """
    check_rate(rate)
    return [rate * index / max(blocks - 1, 1) for index in range(blocks)]


def _deep_copy(module: nn.Module, memo: dict[int, Any]) -> Any:
    """A deep copy of a module, without a look into the dozen empty tables of hooks of each."""
    kind: Any = type(module)
    found = memo[id(module)] = kind.__new__(kind)
    for name, value in vars(module).items():
        if name == "_modules":
            value = {path: _child_copy(child, memo) for path, child in value.items()}
        elif type(value) in (dict, OrderedDict) and not value:
            value = type(value)()
        elif not isinstance(value, bool | int | float | str | None):
            value = copy.deepcopy(value, memo)
        vars(found)[name] = value
    return found


def _child_copy(child: nn.Module | None, memo: dict[int, Any]) -> Any:
    kind = type(child)
    as_it_says = hasattr(kind, "__deepcopy__") or kind.__getstate__ is not object.__getstate__
    if child is None or id(child) in memo or as_it_says:
        return copy.deepcopy(child, memo)
    return _deep_copy(child, memo)
