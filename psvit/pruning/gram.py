"""Gram matrices of what layers read: for the importance ``reconstruction`` and for least squares.

float64, on the device of the pass, where they are inverted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.pruning.calibration import Batches, all_readers, channel_maps, read, readers

# elements of an unfolded input that are held at once: 128 MiB of float64
_AT_ONCE = 2**24


@dataclass
class Gram:
    """XᵀX over the rows of a layer's input X ``[rows, K]``, K = in_channels · kh · kw.

    For channels that a product reads: ``[heads, K, K]``, K units of a head; see ``grams``.
    """

    # float64; before the first rows 0
    matrix: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    # T · B · positions; of a layer that never runs 0
    rows: int = 0

    def add(self, module: nn.Module, x: Tensor) -> None:
        """Add what ``module`` reads, in parts: unfolding it makes it kh · kw times larger."""
        window = getattr(module, "kernel_size", (1, 1))
        part = max(1, _AT_ONCE // (x[0].numel() * window[0] * window[1]))
        for some in x.split(part):
            rows = input_rows(module, some).double()
            self.matrix = self.matrix + rows.T @ rows
            self.rows += len(rows)


def input_grams(
    model: nn.Module,
    paths: Iterable[str],
    batches: Batches,
    device: torch.device | str | None = None,
) -> dict[str, Gram]:
    """The Gram matrix of what each of the convolutions and linear layers ``paths`` reads."""
    found = {path: Gram() for path in paths}
    read(model, list(found), batches, device, lambda path, module, x: found[path].add(module, x))
    return found


def grams(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    batches: Batches,
    device: torch.device | str | None = None,
    scope: str = "all",
) -> dict[str, list[Gram]]:
    """Gram matrices of what each group's consumers read, one a consumer.

    A group that a product reads, in each head, has one of ``[heads, K, K]``: that of the products
    themselves, G_cd = Σ over time and images of Π over the factors x of (x_c·x_d). Arguments as
    for ``gradients``; memory is K² a consumer (a 3x3 convolution of 512 channels: 170 MB).
    """
    groups = list(groups)
    by_path: dict[str, Gram] = {}
    products: dict[str, Gram] = {}
    factors: dict[str, list[Tensor]] = {}
    for group in groups:
        if group.consumers:
            by_path.update({path: Gram() for path in readers(group, scope)})
        else:
            products[group.name] = Gram()
            factors[group.name] = []
    fired_in = [(group, readers(group, scope)) for group in groups if not group.consumers]

    def add(path: str, module: nn.Module, x: Tensor) -> None:
        if path in by_path:
            by_path[path].add(module, x)
        for group, neurons in fired_in:
            if path not in neurons:
                continue
            x_heads = channel_maps(module, x).flatten(2).double().unflatten(1, (group.heads, -1))
            seen = factors[group.name]
            seen.append(x_heads @ x_heads.mT)
            if len(seen) == len(neurons):
                product = products[group.name]
                product.matrix = product.matrix + torch.stack(seen).prod(0).sum(0)
                product.rows += len(x_heads)
                seen.clear()

    read(model, all_readers(groups, scope), batches, device, add)
    return {
        group.name: [by_path[path] for path in readers(group, scope)]
        if group.consumers
        else [products[group.name]]
        for group in groups
    }


def check_rows(
    model: nn.Module, groups: Iterable[ChannelGroup], image: Tensor, asked_by: str
) -> None:
    """Refuse a consumer whose rows ``input_rows`` does not know.

    One that never runs, kept for its checkpoint, is let be: nothing asks for its rows.

    Args:
        model: the network.
        groups: what is to be cut.
        image: any one image, ``[1, C, H, W]`` or ``[1, T, C, H, W]``.
        asked_by: the option that needs the rows, and its value.

    Raises:
        UserError: naming the group and the layer.
    """
    readers_of = {
        path: group.name
        for group in groups
        for path in group.consumers
        if not _has_input_rows(model.get_submodule(path))
    }

    def refuse(path: str, _module: nn.Module, _x: Tensor) -> None:
        reason = f"expected a linear layer, or an nn.Conv2d without groups, with {asked_by}"
        raise UserError(f"{readers_of[path]}.consumers", path, reason)

    if readers_of:
        image = image.to(next(model.parameters()))
        read(model, list(readers_of), [(image, torch.zeros(1))], None, refuse)


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies with its weight: ``[positions, in_channels · kh · kw]``.

    Args:
        module: a linear layer or a convolution; its weight flattened from axis 1 has the same
            columns.
        x: its input, ``[..., C]`` or ``[..., C, H, W]``.

    Raises:
        TypeError: a layer of another kind, or one with groups; see ``check_rows``.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if not _has_input_rows(module):
        raise TypeError(f"no input rows of {module}")
    x, padding, mode = x.flatten(0, -4), module.padding, module.padding_mode
    if isinstance(padding, str) or mode != "zeros":
        # unfolding pads with zeros, as much on either side
        around = module._reversed_padding_repeated_twice
        x = F.pad(x, around, "constant" if mode == "zeros" else mode)
        padding = (0, 0)
    if module.kernel_size == (1, 1) and module.stride == (1, 1) and padding == (0, 0):
        return x.movedim(1, -1).flatten(0, -2)
    patches = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    return patches.movedim(1, -1).flatten(0, -2)


def _has_input_rows(module: nn.Module) -> bool:
    convolution = isinstance(module, nn.Conv2d) and module.groups == 1
    return convolution or isinstance(module, nn.Linear)
