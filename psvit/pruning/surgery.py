"""Apply a plan: mask it in place, or cut it out of a network. Nothing here decides what is cut."""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from psvit.channels import (
    INPUT,
    OUTPUT,
    ChannelGroup,
    Plan,
    axis_length,
    first_weight,
    is_depthwise,
)
from psvit.errors import UserError
from psvit.neurons import reset_state

# (module path, axis of its weight) -> indices kept
Cuts = dict[tuple[str, int], list[int]]


def prune(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a new, physically smaller network.

    ``model`` is left as it is, but for its membrane potentials: they are reset.

    Args:
        model: a network with ``channel_groups()``.
        plan: the indices kept in each group.

    Raises:
        UserError: the plan does not fit the network's channel groups.
    """
    # a potential of a training step carries gradients, which cannot be copied
    reset_state(model)
    return prune_(copy.deepcopy(model), plan)


def prune_(model: nn.Module, plan: Plan) -> nn.Module:
    """Cut ``plan`` out of ``model`` itself and return it; see ``prune``."""
    groups = model.channel_groups()
    for (path, axis), kept in plan_cuts(model, plan).items():
        _cut_module(model.get_submodule(path), axis, kept)
    for name, units in plan.items():
        for path in groups[name].counted_by:
            model.get_submodule(path).num_heads = len(units)
    return model


def pruned_parameters(model: nn.Module, plan: Plan) -> int:
    """Parameters that ``prune(model, plan)`` would have, from the shapes alone."""
    return ParameterCounter(model)(plan)


class ParameterCounter:
    """``pruned_parameters`` of one network for many plans: its groups are looked up once.

    Args:
        model: a network with ``channel_groups()``; must keep its shape.
    """

    def __init__(self, model: nn.Module):
        self._groups = model.channel_groups()
        self._axes = {name: _cut_axes(model, group) for name, group in self._groups.items()}
        # a layer that lies in several containers has as many paths
        named = model.named_modules(remove_duplicate=False)
        self._modules = {path: id(module) for path, module in named}
        self._tensors = {
            id(module): [(id(tensor), tensor.shape) for tensor in module.parameters(recurse=False)]
            for module in model.modules()
        }
        # ... and layers may share their weights until they are cut
        self._holders = Counter(key for found in self._tensors.values() for key, _ in found)
        self._whole = sum(tensor.numel() for tensor in model.parameters())

    def __call__(self, plan: Plan) -> int:
        found = _cuts(plan.check(self._groups), self._groups, self._axes)
        cuts = {(self._modules[path], axis): kept for (path, axis), kept in found.items()}
        total, cut = self._whole, Counter[int]()
        for module in {module for module, _ in cuts}:
            for tensor, shape in self._tensors[module]:
                left = [len(cuts.get((module, axis), range(n))) for axis, n in enumerate(shape)]
                if left != list(shape):
                    cut[tensor] += 1
                    whole = shape.numel() if cut[tensor] == self._holders[tensor] else 0
                    total += math.prod(left) - whole
        return total


@contextmanager
def masked(
    model: nn.Module, plan: Plan, groups: Mapping[str, ChannelGroup] | None = None
) -> Iterator[nn.Module]:
    """Let ``model`` answer as the pruned network would, and restore every bit afterwards.

    What the groups' consumers read is zeroed; a query is silenced at its last batch norm, or
    where that is folded at the convolution. ``groups``: the network's, where they are known:
    looking them up may take as long as running a small network.

    Raises:
        UserError: the plan does not fit the network's channel groups, or a module that a group
            silences has nothing that could be set to zero.
    """
    groups = model.channel_groups() if groups is None else groups
    plan.check(groups)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, kept in plan.items():
                group = groups[name]
                removed = sorted(set(range(group.size)) - set(kept))
                for path in group.masked_modules if removed else ():
                    axis = OUTPUT if group.silenced else INPUT
                    for tensor in _masked_tensors(model.get_submodule(path), path, group):
                        saved.append((tensor, tensor.detach().clone()))
                        zeroed = expand_units(removed, group.size, tensor.shape[axis])
                        tensor.index_fill_(axis, torch.tensor(zeroed, device=tensor.device), 0.0)
        yield model
    finally:
        with torch.no_grad():
            for tensor, original in reversed(saved):
                tensor.copy_(original)


def _masked_tensors(module: nn.Module, path: str, group: ChannelGroup) -> list[Tensor]:
    if not group.silenced:
        return [module.weight]
    tensors = list(module.parameters(recurse=False))
    if not tensors:
        reason = "expected a module with a weight: nothing else can be set to zero"
        raise UserError(f"{group.name}.silenced", path, reason)
    return tensors


def plan_cuts(model: nn.Module, plan: Plan) -> Cuts:
    """The indices kept on every axis that the plan cuts.

    Where several groups cut one axis (a head and the channels inside heads), what all of them
    keep is kept.
    """
    groups = model.channel_groups()
    plan.check(groups)
    return _cuts(plan, groups, {name: _cut_axes(model, groups[name]) for name in plan})


def _cut_axes(model: nn.Module, group: ChannelGroup) -> list[tuple[str, int, int]]:
    """(module path, axis, length) of every axis that holds the group's channels."""
    ends = ((group.producers, OUTPUT), (group.consumers, INPUT))
    return [
        (path, axis, axis_length(module, axis))
        for paths, axis in ends
        for path, module in ((path, model.get_submodule(path)) for path in paths)
        if not isinstance(module, nn.Identity)  # a batch norm that was left out
    ]


def _cuts(
    plan: Plan,
    groups: Mapping[str, ChannelGroup],
    axes: Mapping[str, list[tuple[str, int, int]]],
) -> Cuts:
    cuts: Cuts = {}
    for name, kept in plan.items():
        size = groups[name].size
        if len(kept) == size:
            continue
        for path, axis, length in axes[name]:
            indices = expand_units(kept, size, length)
            if (path, axis) in cuts:
                allowed = set(indices)
                indices = [index for index in cuts[path, axis] if index in allowed]
            cuts[path, axis] = indices
    for (path, _axis), indices in cuts.items():
        if not indices:
            raise UserError("plan", path, "the groups that share this layer keep no common channel")
    return cuts


def compose(model: nn.Module, first: Plan, second: Plan) -> Plan:
    """One plan for ``model`` that does what ``first`` and then ``second`` do.

    ``second`` speaks of the network that ``first`` left; the result speaks of ``model``.
    """
    groups = model.channel_groups()
    cuts = plan_cuts(model, first)
    kept: dict[str, list[int]] = {}
    for name in {**first, **second}:
        group = groups[name]
        left = list(range(group.size))
        producer = first_weight(model, group.producers)
        if (producer, OUTPUT) in cuts:
            # another group may have cut the same channels: a removed head takes its channels along
            run = model.get_submodule(producer).weight.shape[OUTPUT] // group.size
            left = sorted({channel // run for channel in cuts[producer, OUTPUT]})
        kept[name] = [left[unit] for unit in second[name]] if name in second else left
        kept[name] += _of_removed_heads(group, kept[name])
    return Plan(kept)


def _of_removed_heads(group: ChannelGroup, kept: list[int]) -> list[int]:
    """As many units of heads that lost all of theirs as the other heads keep.

    They go with their head; a plan names them because it keeps as many units of every head.
    """
    per_head = group.size // group.heads
    each = max(sum(unit // per_head == head for unit in kept) for head in range(group.heads))
    present = {unit // per_head for unit in kept}
    return [
        head * per_head + unit
        for head in range(group.heads)
        if head not in present
        for unit in range(each)
    ]


def expand_units(units: list[int] | tuple[int, ...], size: int, length: int) -> list[int]:
    """Channel indices of ``units``, when ``size`` units share ``length`` channels in equal runs."""
    run = length // size
    return [unit * run + offset for unit in units for offset in range(run)]


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    last = torch.channels_last
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _cut_module(module: nn.Module, axis: int, kept: list[int]) -> None:
    index = torch.tensor(kept)
    for name, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        if tensor.dim() <= axis:
            continue
        smaller = tensor.detach().index_select(axis, index.to(tensor.device))
        smaller = smaller.contiguous(memory_format=_memory_format(tensor))
        if isinstance(tensor, nn.Parameter):
            smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
        setattr(module, name, smaller)
    if isinstance(module, nn.Linear):
        setattr(module, "out_features" if axis == OUTPUT else "in_features", len(kept))
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(kept)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (len(kept),)
    elif isinstance(module, nn.modules.conv._ConvNd):
        if axis == INPUT:
            module.in_channels = len(kept)
        else:
            if is_depthwise(module):
                # the filters of a channel go together
                of_a_channel = module.out_channels // module.groups
                module.in_channels = module.groups = len(kept) // of_a_channel
            module.out_channels = len(kept)
    else:
        raise TypeError(f"cannot cut a {type(module).__name__}")
