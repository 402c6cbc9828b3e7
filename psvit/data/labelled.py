"""What a dataset is once it is found: images and labels, by split."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class Labelled(NamedTuple):
    """Images, or the event frames of recordings, and their classes.

    Attributes:
        images: uint8 ``[N, 3, height, width]``; or a list of N uint8 ``[3, height, width]`` of
            different sizes; or float32 frames ``[N, T, 2, height, width]``; or a list of N files
            not yet read.
        labels: int64 ``[N]``.
    """

    images: Tensor | list[Tensor] | list[Path]
    labels: Tensor

    def take(self, indices: Tensor) -> "Labelled":
        """Those at ``indices``, int64 ``[M]``, in that order."""
        if isinstance(self.images, Tensor):
            return Labelled(self.images[indices], self.labels[indices])
        return Labelled([self.images[i] for i in indices.tolist()], self.labels[indices])


class Source(NamedTuple):
    """A dataset as published; a part that is None is to be split from ``train``.

    ``decode`` reads a file, where the parts hold files.
    """

    class_names: list[str]
    train: Labelled
    val: Labelled | None
    test: Labelled | None
    decode: Callable[[Path], Tensor] | None = None
