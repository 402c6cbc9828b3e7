"""Which classes a smaller network answers differently, and which of them paid.

Two networks answer the same images, so differences are taken image by image: an image that both
get right, or both wrong, says nothing about the difference, and its standard error is that of the
images on which only one of them is right (McNemar).
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from psvit.measure.accuracy import Tally, standard_error


def compare(base: Tally, other: Tally) -> dict[str, float]:
    """Two networks on the same images.

    Returns:
        ``agreement``: percent of the images that both put into the same class;
        ``drop_stderr``: standard error, in points, of the difference of their top-1.

    Raises:
        ValueError: they saw different images.
    """
    labels, before, after = _answers(base, other)
    agreement = 100.0 * float((before == after).double().mean())
    lost, gained = _lost_and_gained(labels, before, after)
    return {
        "agreement": agreement,
        "drop_stderr": _paired_error(int(lost.sum()), int(gained.sum()), len(labels)),
    }


def class_changes(base: Tally, other: Tally, names: Sequence[str]) -> pd.DataFrame:
    """What became of each class.

    Args:
        base: of the network before.
        other: of the network after, on the same images.
        names: of the classes, in the order of the labels.

    Returns:
        A row a class that the images have: ``class``, ``images``, ``top1_base``, ``top1`` and
        ``top1_stderr`` (percent, points), ``change`` (points, below 0 where the class paid) and
        ``change_stderr``, ``lost`` and ``gained`` (images that only the base network, or only the
        other, gets right), ``taken_for`` (the class that most of the lost ones are now taken for).

    Raises:
        ValueError: they saw different images.
    """
    labels, before, after = _answers(base, other)
    lost, gained = _lost_and_gained(labels, before, after)
    rows = []
    for label, name in enumerate(names):
        mine = labels == label
        images = int(mine.sum())
        if not images:
            continue
        right_before = int((mine & (before == labels)).sum())
        right = int((mine & (after == labels)).sum())
        gone, come = int((mine & lost).sum()), int((mine & gained).sum())
        rows.append(
            {
                "class": name,
                "images": images,
                "top1_base": 100.0 * right_before / images,
                "top1": 100.0 * right / images,
                "top1_stderr": standard_error(right, images),
                "change": 100.0 * (right - right_before) / images,
                "change_stderr": _paired_error(gone, come, images),
                "lost": gone,
                "gained": come,
                "taken_for": names[int(after[mine & lost].mode().values)] if gone else "",
            }
        )
    return pd.DataFrame(rows)


def confusion_changes(base: Tally, other: Tally, names: Sequence[str]) -> pd.DataFrame:
    """Both networks' confusion matrices, without the entries that are 0 in both.

    Returns:
        Columns ``class``, ``taken_for``, ``images_base``, ``images`` and ``change`` (images).

    Raises:
        ValueError: they saw different images.
    """
    labels, before, after = _answers(base, other)
    size = len(names)

    def matrix(chosen: Tensor) -> Tensor:
        return torch.bincount(labels * size + chosen, minlength=size * size)

    counts_base, counts = matrix(before), matrix(after)
    cells = (counts_base + counts).nonzero().flatten()
    table = pd.DataFrame(
        {
            "class": [names[int(cell) // size] for cell in cells],
            "taken_for": [names[int(cell) % size] for cell in cells],
            "images_base": counts_base[cells].numpy(),
            "images": counts[cells].numpy(),
        }
    )
    return table.assign(change=table["images"] - table["images_base"])


def _answers(base: Tally, other: Tally) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, and the classes that each chose, of all images ``[N]``."""
    (before, labels), (after, same) = (
        (torch.cat(part) for part in zip(*tally.answers or (), strict=True))
        for tally in (base, other)
    )
    if not torch.equal(labels, same):
        raise ValueError("the two networks saw different images")
    return labels, before, after


def _lost_and_gained(labels: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    right_before, right = before == labels, after == labels
    return right_before & ~right, right & ~right_before


def _paired_error(lost: int, gained: int, images: int) -> float:
    """Standard error, in points, of (gained - lost) / images."""
    spread = lost + gained - (gained - lost) ** 2 / images
    return 100.0 * math.sqrt(max(spread, 0.0)) / images
