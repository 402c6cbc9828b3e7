"""Statistics of calibration images, for importances and for recovery: sums, in one pass.

Every pass runs the network in evaluation mode (``SpikingTransformer.run`` resets its state before
each batch) and leaves it as it was: its weights, gradients, modes and device are the same, its
hooks are gone, its neurons at rest. Statistics are float64 on the CPU. Gram matrices:
psvit.pruning.gram.

Legend: T time steps, B images of a batch, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.neurons import reset_state
from psvit.pruning.image_axis import Seen, keep_output, products_per_image, shapes_of_others

# (images [B, C, H, W] or [B, T, C, H, W], labels [B])
Batches = Iterable[tuple[Tensor, Tensor]]

# module path, module, what it reads (a neuron: what it fires)
Add = Callable[[str, nn.Module, Tensor], None]

SCOPES = ("all", "first")


def in_scope(modules: Sequence[Any], scope: str) -> Sequence[Any]:
    """All of ``modules``, or the first one only."""
    return modules if scope == "all" else modules[:1]


@dataclass
class Gates:
    """Σ g·w of each unit of a group: the derivative of an image's loss by a factor on the unit."""

    # [group.size], over images: the sum and the sum of squares
    total: Tensor
    squares: Tensor
    images: int = 0


def gradients(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    batches: Batches,
    device: torch.device | str | None = None,
    scope: str = "all",
) -> dict[str, Gates]:
    """Σ g·w over the parameters of each unit in the group's producers, image by image.

    g is the gradient of the image's cross-entropy. A producer's output y is linear in its
    parameters (in evaluation mode batch norms are), so Σ g·w = Σ over time and pixels of (∂L/∂y)·y:
    one backward pass of a batch gives it for every image, and no parameter's gradient is made.

    Args:
        model: the network.
        groups: what to look at.
        batches: images and labels.
        device: where to run; None for where the network is.
        scope: sum over all producers, or the first one only.
    """
    groups = list(groups)
    sums = {group.name: Gates(_zeros(group.size), _zeros(group.size)) for group in groups}
    # a batch norm that is not affine has no parameters
    producers = {
        group.name: in_scope([p for p in group.producers if _has_parameters(model, p)], scope)
        for group in groups
    }
    outputs: Seen = {}

    paths = {path for names in producers.values() for path in names}
    with (
        _as_it_was(model, device) as place,
        hooks(
            model.get_submodule(path).register_forward_hook(partial(keep_output, outputs, path))
            for path in paths
        ),
        torch.enable_grad(),
    ):
        for images, labels in batches:
            images = images.to(place)
            others = shapes_of_others(model, images, outputs)
            loss = F.cross_entropy(model(images), labels.to(place), reduction="sum")
            products = products_per_image(loss, outputs, others, len(labels), model)
            gates = {path: product.cpu() for path, product in products.items()}
            for group in groups:
                sampled = sum(
                    gates[path].unflatten(1, (group.size, -1)).sum(2)
                    for path in producers[group.name]
                    # a module may be kept for its checkpoint and never run
                    if path in gates
                )
                sums[group.name].total += sampled.sum(0)
                sums[group.name].squares += sampled.square().sum(0)
                sums[group.name].images += len(labels)
    return sums


def activity(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    batches: Batches,
    device: torch.device | str | None = None,
    scope: str = "all",
) -> dict[str, Tensor]:
    """Mean |x| over time, images, pixels and the unit's channels: ``[readers, group.size]``.

    x is what the group's readers read; see ``readers``, of which those that never run are left
    out. Arguments as for ``gradients``.
    """
    return _means(
        model,
        groups,
        batches,
        device,
        scope,
        lambda maps: maps.double().abs().mean((2, 3)),
    )


def singular_values(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    batches: Batches,
    device: torch.device | str | None = None,
    scope: str = "all",
) -> dict[str, Tensor]:
    """Mean over time, images and the unit's channels of the sum of a map's singular values.

    ``[readers, group.size]``, as in ``activity``; a map is one channel's ``[H, W]`` at one step.
    Arguments as for ``gradients``.
    """
    return _means(
        model,
        groups,
        batches,
        device,
        scope,
        lambda maps: torch.linalg.svdvals(maps.double()).sum(-1),
    )


def readers(group: ChannelGroup, scope: str = "all") -> Sequence[str]:
    """The consumers of a group, or the neurons whose spikes a product reads.

    Raises:
        UserError: the group names neither.
    """
    found = group.consumers or group.neurons
    if not found:
        raise UserError(
            "channel_groups",
            group.name,
            "the group names neither consumers nor neurons: nothing can be calibrated or estimated",
        )
    return in_scope(found, scope)


def all_readers(groups: Iterable[ChannelGroup], scope: str) -> list[str]:
    """The ``readers`` of all groups, each once."""
    return list(dict.fromkeys(path for group in groups for path in readers(group, scope)))


def _means(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    batches: Batches,
    device: torch.device | str | None,
    scope: str,
    measure: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean of ``measure(maps [N, C, H, W])`` ``[N, C]`` for each reader that runs, and unit.

    Of a group that nothing reads: zeros.
    """
    groups = list(groups)
    sums: dict[str, Tensor] = {}
    maps_seen: dict[str, int] = {}

    def add(path: str, module: nn.Module, x: Tensor) -> None:
        maps = channel_maps(module, x)
        sums[path] = sums.get(path, 0.0) + measure(maps).sum(0).cpu()
        maps_seen[path] = maps_seen.get(path, 0) + len(maps)

    read(model, all_readers(groups, scope), batches, device, add)
    found = {}
    for group in groups:
        means = [
            (sums[path] / maps_seen[path]).reshape(group.size, -1).mean(1)
            for path in readers(group, scope)
            # a module may be kept for its checkpoint and never run
            if path in sums
        ]
        found[group.name] = torch.stack(means or [_zeros(group.size)])
    return found


def read(
    model: nn.Module,
    paths: Sequence[str],
    batches: Batches,
    device: torch.device | str | None,
    add: Add,
) -> None:
    """Run the batches; ``add`` gets what each module reads, or, of a neuron, what it fires."""

    def hook(path: str) -> Any:
        module = model.get_submodule(path)
        if hasattr(module, "weight"):
            return module.register_forward_pre_hook(lambda module, args: add(path, module, args[0]))
        return module.register_forward_hook(lambda module, _, spikes: add(path, module, spikes))

    with (
        _as_it_was(model, device) as place,
        hooks(hook(path) for path in paths),
        # last: weights that moved in inference mode could not be trained afterwards
        torch.inference_mode(),
    ):
        for images, _ in batches:
            model(images.to(place))


def channel_maps(module: nn.Module, x: Tensor) -> Tensor:
    """``[T, B, C, H, W]``, ``[N, C, H, W]`` or (linear) ``[..., C]`` -> ``[N, C, H, W]``."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1], 1, 1)
    return x.flatten(0, -4)


def _has_parameters(model: nn.Module, path: str) -> bool:
    return next(model.get_submodule(path).parameters(recurse=False), None) is not None


def _zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@contextmanager
def hooks(handles: Iterable[Any]) -> Iterator[None]:
    """Takes away the hooks of ``handles`` in the end, however it ends."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_it_was(model: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """Evaluation mode on ``device``, which is given; afterwards everything is as before."""
    modes = [(module, module.training) for module in model.modules()]
    before = next(model.parameters()).device
    place = before if device is None else torch.device(device)
    try:
        model.eval().to(place)
        yield place
    finally:
        reset_state(model)
        model.to(before)
        for module, training in modes:
            module.training = training
