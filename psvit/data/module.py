"""The data of a run as a LightningDataModule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset

from psvit.data.files import decode, read_all, verify
from psvit.data.frames import FrameTrainTransform, FrameTransform
from psvit.data.labelled import Labelled, Source
from psvit.data.loading import ImageDataset, Loader, Repeats, SharedBatches, collate
from psvit.data.options import EVENT_DATASETS, check_options
from psvit.data.sources import read_source
from psvit.data.splits import split
from psvit.data.transforms import EvalTransform, TrainTransform
from psvit.errors import UserError
from psvit.processes import world_size


def create_data(cfg: DictConfig, seed: int) -> "ImageData":
    """Reads, checks and splits a dataset; what is wrong with it shows here, before any training.

    Args:
        cfg: the composed ``dataset`` group.
        seed: of the order in which training images come. What augmentation draws comes from the
            global generators, which the run seeds; who is in which split, from ``cfg.split_seed``.

    Raises:
        UserError: naming the option that is wrong.
    """
    check_options(cfg)
    # Built before the images are read: a bad augmentation should not wait for them.
    transforms: dict[str, EvalTransform]
    if cfg.name in EVENT_DATASETS:
        transforms = {"train": FrameTrainTransform(cfg), "eval": FrameTransform(cfg)}
    else:
        transforms = {"train": TrainTransform(cfg), "eval": EvalTransform(cfg)}
    source = read_source(cfg)
    parts = split(source, cfg)
    if source.decode is not None:
        parts = _read_files(parts, cfg, source.decode, transforms)
    return ImageData(cfg, seed, source, parts, transforms)


def _read_files(
    parts: dict[str, Labelled],
    cfg: DictConfig,
    decode: Callable[[Path], Tensor],
    transforms: dict[str, EvalTransform],
) -> dict[str, Labelled]:
    """Decodes the files into memory (``cache``), or only makes sure of them (``verify``)."""
    root = Path(cfg.root).expanduser()
    if not cfg.cache:
        # event frames were made here, from recordings that were checked
        if cfg.get("verify"):
            read_all([path for part in parts.values() for path in part.images], verify, root)
        return parts
    cached = {}
    for name, (paths, labels) in parts.items():
        key = OmegaConf.to_yaml(cfg, resolve=True), [(path, _written(path)) for path in paths]
        if _decoded.get(name, (None, None))[0] != key:
            transform = transforms["train" if name == "train" else "eval"]
            images = _decode(paths, transform, decode, root)
            _decoded[name] = key, images
        cached[name] = Labelled(_decoded[name][1], labels)
    return cached


# part -> what was decoded, and the images: the jobs of a multirun mostly read the same files
_decoded: dict[str, tuple[Any, Tensor | list[Tensor]]] = {}


def _written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _decode(
    paths: list[Path], transform: EvalTransform, decode: Callable[[Path], Tensor], root: Path
) -> Tensor | list[Tensor]:
    """Images as the transform stores them; one tensor where they are of one size."""
    images = read_all(paths, lambda path: transform.store(decode(path)), root)
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


class ImageData(LightningDataModule):
    """Three splits and their loaders, whose batches are int64 labels ``[B]`` and normalised float32
    images ``[B, 3, S, S]`` or, from event datasets, frames ``[B, T, 2, S, S]``.

    Attributes:
        train, val, test: the splits, as map-style datasets; ``train`` augments.
        class_names, num_classes: the classes, in the order of the labels.
        in_channels, image_size: what the network is to take.
        preprocessing: what an image goes through when evaluated, as plain values.
    """

    def __init__(
        self,
        cfg: DictConfig,
        seed: int,
        source: Source,
        parts: dict[str, Labelled],
        transforms: dict[str, EvalTransform],
    ):
        super().__init__()
        self.cfg, self.seed = cfg, seed
        self.class_names, self.num_classes = source.class_names, len(source.class_names)
        self.image_size, self.in_channels = cfg.image_size, len(cfg.mean)
        root = Path(cfg.root or "").expanduser()

        def dataset(part: str, transform: str) -> ImageDataset:
            return ImageDataset(parts[part], transforms[transform], source.decode or decode, root)

        self.train = dataset("train", "train")
        self.val = dataset("val", "eval")
        self.test = dataset("test", "eval")
        self._plain_train = dataset("train", "eval")
        self._order = torch.Generator()
        self._loaded_order: Tensor | None = None

    @property
    def preprocessing(self) -> dict:
        """What an image goes through before a network: options of the dataset."""
        values = OmegaConf.to_container(self.cfg, resolve=True)
        steps = ("frames", "image_size", "mean", "std", "crop_pct", "interpolation")
        return {step: values[step] for step in steps if step in values}

    def train_dataloader(self) -> DataLoader:
        """Shuffled; an odd last batch is dropped, as mixup pairs images and BatchNorm cannot
        normalise one, and one that the processes cannot share evenly."""
        last = len(self.train) % self.cfg.batch_size
        drop_last = len(self.train) > self.cfg.batch_size and (
            last % 2 == 1 or last % world_size() > 0
        )
        self._order = torch.Generator().manual_seed(self.seed)
        if self._loaded_order is not None:
            self._order.set_state(self._loaded_order)
            self._loaded_order = None
        repeats = self.cfg.augment.get("repeats", 1)
        if repeats > 1:
            order = Repeats(self.train, repeats, self.seed)
        else:
            order = RandomSampler(self.train, generator=self._order)
        return self._loader(
            self.train,
            batch_sampler=SharedBatches(order, self.cfg.batch_size, drop_last),
            generator=self._order,
            # workers that outlive an epoch would draw on where no checkpoint can follow
            persistent_workers=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What Lightning's checkpoints hold of the data: where the order of the images stands."""
        return {"order": self._order.get_state()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """The next training loader goes on from there."""
        self._loaded_order = state_dict["order"]

    def val_dataloader(
        self, images: int | None = None, batch_size: int | None = None, shuffled: bool = False
    ) -> DataLoader:
        """In a fixed order, ``shuffled`` or as they are; ``images`` of them, chosen at random and
        always the same ones."""
        chosen = self._chosen(self.val, images)
        if shuffled:
            chosen = Subset(chosen, _choice(len(chosen), len(chosen), self.cfg.split_seed))
        return self._loader(chosen, batch_size or self.cfg.eval_batch_size)

    def test_dataloader(self, images: int | None = None) -> DataLoader:
        """In a fixed order; ``images`` of them as in ``val_dataloader``."""
        return self._loader(self._chosen(self.test, images), self.cfg.eval_batch_size)

    def calibration_dataloader(self, images: int) -> DataLoader:
        """``images`` training images, without augmentation; which ones the run's seed says.

        Raises:
            UserError: if the training split has fewer.
        """
        total = len(self.train)
        if not 1 <= images <= total:
            raise UserError("calibration images", images, f"between 1 and {total} training images")
        subset = Subset(self._plain_train, _choice(total, images, self.seed))
        return self._loader(subset, self.cfg.eval_batch_size)

    def _chosen(self, part: ImageDataset, images: int | None) -> Dataset:
        if images is None or images >= len(part):
            return part
        return Subset(part, _choice(len(part), images, self.cfg.split_seed))

    def _loader(self, dataset: Dataset, batch_size: int = 1, **options) -> DataLoader:
        # Its own generator in evaluation too: without one, a loader draws from the global one, and
        # how often a run evaluates would change how it trains.
        options.setdefault("generator", torch.Generator().manual_seed(self.seed))
        options.setdefault("persistent_workers", self.cfg.num_workers > 0)
        return Loader(
            dataset,
            batch_size,
            collate_fn=collate,
            num_workers=self.cfg.num_workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def _choice(total: int, images: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:images].tolist()
