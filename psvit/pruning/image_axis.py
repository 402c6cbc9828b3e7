"""Which numbers of a layer's tensor are of which image: shapes alone do not tell.

Legend: T time steps, B images of a batch, C channels, H x W pixels.
"""

import torch
from torch import Tensor, nn

from psvit.errors import UserError


@torch.no_grad()
def shapes_of_others(
    model: nn.Module, images: Tensor, seen: dict[str, Tensor]
) -> dict[str, torch.Size]:
    """Shapes of what hooks put into ``seen`` when ``model`` runs on another number of images.

    For ``per_image``; ``seen`` is empty afterwards.
    """
    model(images[:1] if len(images) > 1 else images.repeat_interleave(2, 0))
    shapes = {path: x.shape for path, x in seen.items()}
    seen.clear()
    return shapes


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
