"""How samples become batches: read, transformed a batch at a time, shared among processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate, get_worker_info

from psvit.data.files import unreadable
from psvit.data.labelled import Labelled
from psvit.data.transforms import EvalTransform
from psvit.errors import UserError
from psvit.processes import share


class ImageDataset(Dataset):
    """Images, or event frames, and labels that are transformed a batch at a time.

    Args:
        part: the images and labels.
        transform: from stored images to float32 ``[B, 3, S, S]``, or frames ``[B, T, 2, S, S]``.
        decode: reads a file, where ``part`` holds files.
        root: the folder to name when a file cannot be read.
    """

    def __init__(
        self,
        part: Labelled,
        transform: EvalTransform,
        decode: Callable[[Path], Tensor],
        root: Path,
    ):
        self.images, self.labels = part
        self.transform, self.decode, self.root = transform, decode, root

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        samples = self.__getitems__([index])
        if isinstance(samples, UserError):
            raise samples
        return samples[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]] | UserError:
        """The samples of a batch; DataLoader calls this where a dataset has it.

        In a worker a UserError is returned, for ``Loader`` to raise.
        """
        if isinstance(self.images, Tensor):
            images = self.images[indices]
        else:
            try:
                images = [self._read(self.images[index]) for index in indices]
            except UserError as error:
                if get_worker_info() is None:
                    raise
                return error
        return list(zip(self.transform(images), self.labels[indices], strict=True))

    def _read(self, image: Tensor | Path) -> Tensor:
        if isinstance(image, Tensor):
            return image
        try:
            return self.decode(image)
        except Exception as error:  # noqa: BLE001  decoders fail in any way on a broken file
            raise unreadable(image, error, self.root) from error


class Repeats(RepeatAugSampler):
    """Each image several times in a row, in an order that is drawn anew for each epoch.

    timm's draws it from the epoch alone, so that runs of all seeds would see the same one.

    Args:
        images: what is sampled.
        repeats: of each image in an epoch.
        seed: of the order.
    """

    def __init__(self, images: Dataset, repeats: int, seed: int):
        super().__init__(images, 1, 0, num_repeats=repeats, selected_round=0)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Lightning tells the epoch."""
        # far apart: no run has as many epochs
        super().set_epoch(epoch + 1_000_003 * self._seed)


class SharedBatches(BatchSampler):
    """The batches of one process, of which each process has its share."""

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield share(batch)


class Loader(DataLoader):
    """A DataLoader that raises a UserError of its workers as it is: torch would make a RuntimeError
    of it, with a traceback for its text."""

    def __iter__(self) -> Iterator[Any]:
        return _raised(super().__iter__())


def _raised(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def collate(samples: list[tuple[Tensor, Tensor]] | UserError) -> Any:
    """A batch of samples, or what a worker could not read."""
    return samples if isinstance(samples, UserError) else default_collate(samples)
