"""Which numbers of a layer's tensor are of which image: shapes alone do not tell.

Legend: T time steps, B images of a batch, C channels, H x W pixels.
"""

import torch
from torch import Tensor, nn

from psvit.errors import UserError

# module path -> what hooks saw of it, one tensor for each time that it ran
Seen = dict[str, list[Tensor]]


def keep_output(seen: Seen, path: str, _module: nn.Module, _args: tuple, y: Tensor) -> Tensor:
    """A forward hook that notes a module's output in ``seen``; others read a copy of it.

    With nothing but frozen parameters before it, the output is where the graph begins.
    """
    seen.setdefault(path, []).append(y.requires_grad_())
    # a block may write to it (``y += x``), and what is noted has to stay
    return y.clone()


@torch.no_grad()
def shapes_of_others(model: nn.Module, images: Tensor, seen: Seen) -> dict[str, list[torch.Size]]:
    """Shapes of what hooks put into ``seen`` when ``model`` runs on another number of images.

    For ``products_per_image``; ``seen`` is emptied before and afterwards.
    """
    seen.clear()
    model(images[:1] if len(images) > 1 else images.repeat_interleave(2, 0))
    shapes = {path: [x.shape for x in calls] for path, calls in seen.items()}
    seen.clear()
    return shapes


def products_per_image(
    total: Tensor, seen: Seen, others: dict[str, list[torch.Size]], images: int, model: nn.Module
) -> dict[str, Tensor]:
    """Σ x · ∂total/∂x of each channel of what each module reads or gives: ``[B, C]``, float64.

    Args:
        total: a sum over the images.
        seen: the tensors x, in the graph of ``total``. A module that ran several times has the sum
            over its calls.
        others: their shapes for another number of images; see ``shapes_of_others``.
        images: B.
        model: the network.

    Raises:
        UserError: no axis of a tensor depends on the images.
    """
    calls = [
        (path, x, other)
        for path, tensors in seen.items()
        for x, other in zip(tensors, others[path], strict=True)
    ]
    slopes = torch.autograd.grad(total, [x for _, x, _ in calls], materialize_grads=True)
    found: dict[str, Tensor] = {}
    for (path, x, other), slope in zip(calls, slopes, strict=True):
        product = per_image(x.detach().double() * slope.double(), other, images, model, path)
        found[path] = found[path] + product if path in found else product
    return found


def per_image(x: Tensor, other: torch.Size, images: int, model: nn.Module, path: str) -> Tensor:
    """What the module ``path`` reads or gives, summed to ``[B, C]``.

    Images lie along the axis whose length depends on their number: ``x`` may have the steps before
    it (``[T, B, C, H, W]``, ``[T, B, tokens, C]``), inside it (``[T · B, ...]``) or behind it no
    more (``[B, C]``), and T, B and the tokens may be equal. The channels are the next axis, of
    linear layers and layer norms the last.

    Args:
        x: the tensor, of a run on ``images`` images.
        other: its shape for another number of images; see ``shapes_of_others``.
        images: B.
        model: the network.
        path: of the module whose tensor it is.

    Raises:
        UserError: no axis depends on the images.
    """
    axis = next((axis for axis, n in enumerate(other) if n != x.shape[axis]), None)
    if axis is None:
        reason = "expected a module that runs on each image: its tensor is the same for any number"
        raise UserError("channel_groups", path, reason)
    channels = -1 if isinstance(model.get_submodule(path), nn.Linear | nn.LayerNorm) else axis + 1
    x = x.movedim(channels, axis + 1).flatten(0, axis)
    return x.reshape(-1, images, x.shape[1], x[0, 0].numel()).sum((0, 3))
