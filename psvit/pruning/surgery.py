"""Apply a plan: mask it in place, or cut it out of a network. Nothing here decides what is cut."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup, Plan
from psvit.errors import UserError

# (module path, axis of its weight) -> indices kept
Cuts = dict[tuple[str, int], list[int]]

OUTPUT, INPUT = 0, 1


def prune(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a new, physically smaller network; ``model`` is left as it is.

    Args:
        model: a network with ``channel_groups()``.
        plan: the indices kept in each group.

    Raises:
        UserError: the plan does not fit the network's channel groups.
    """
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
    cuts = plan_cuts(model, plan)
    total = 0
    for path, module in model.named_modules():
        outputs, inputs = cuts.get((path, OUTPUT)), cuts.get((path, INPUT))
        for tensor in module.parameters(recurse=False):
            shape = list(tensor.shape)
            if outputs is not None:
                shape[0] = len(outputs)
            if inputs is not None and len(shape) > 1:
                shape[1] = len(inputs)
            total += torch.Size(shape).numel()
    return total


@contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """Let ``model`` answer as the pruned network would, and restore every bit afterwards.

    What the groups' consumers read is zeroed; a query is silenced at its last batch norm, or
    where that is folded at the convolution.

    Raises:
        UserError: the plan does not fit the network's channel groups.
    """
    groups = model.channel_groups()
    plan.check(groups)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, kept in plan.items():
                group = groups[name]
                removed = sorted(set(range(group.size)) - set(kept))
                for path in group.masked_modules if removed else ():
                    module = model.get_submodule(path)
                    axis = OUTPUT if group.silenced else INPUT
                    silenced = group.silenced and module.parameters(recurse=False)
                    for tensor in silenced or (module.weight,):
                        saved.append((tensor, tensor.detach().clone()))
                        zeroed = expand_units(removed, group.size, tensor.shape[axis])
                        tensor.index_fill_(axis, torch.tensor(zeroed, device=tensor.device), 0.0)
        yield model
    finally:
        with torch.no_grad():
            for tensor, original in reversed(saved):
                tensor.copy_(original)


def plan_cuts(model: nn.Module, plan: Plan) -> Cuts:
    """The indices kept on every axis that the plan cuts.

    Where several groups cut one axis (a head and the channels inside heads), what all of them
    keep is kept.
    """
    groups: Mapping[str, ChannelGroup] = model.channel_groups()
    plan.check(groups)
    cuts: Cuts = {}
    for name, kept in plan.items():
        group = groups[name]
        if len(kept) == group.size:
            continue
        for paths, axis in ((group.producers, OUTPUT), (group.consumers, INPUT)):
            for path in paths:
                if isinstance(model.get_submodule(path), nn.Identity):
                    continue  # a folded batch norm
                length = model.get_submodule(path).weight.shape[axis]
                indices = expand_units(kept, group.size, length)
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
        producer = group.producers[0]
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
            depthwise = module.groups == module.out_channels == module.in_channels
            module.out_channels = len(kept)
            if depthwise:
                module.in_channels = module.groups = len(kept)
    else:
        raise TypeError(f"cannot cut a {type(module).__name__}")
