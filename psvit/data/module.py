"""The data of a run as a LightningDataModule."""

from pathlib import Path

import torch
from lightning import LightningDataModule
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from psvit.data.files import decode, read_all, unreadable, verify
from psvit.data.options import check_options
from psvit.data.sources import Labelled, read_source
from psvit.data.splits import split
from psvit.data.transforms import EvalTransform, Fit, TrainTransform
from psvit.errors import UserError


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
    transforms = {"train": TrainTransform(cfg), "eval": EvalTransform(cfg)}
    source = read_source(cfg)
    parts = split(source, cfg)
    if cfg.name == "image_folder":
        parts = _read_files(parts, cfg)
    return ImageData(cfg, seed, source.class_names, parts, transforms)


def _read_files(parts: dict[str, Labelled], cfg: DictConfig) -> dict[str, Labelled]:
    """Decodes the files into memory (``cache``), or only makes sure of them (``verify``)."""
    root = Path(cfg.root).expanduser()
    if not cfg.cache:
        if cfg.verify:
            read_all([path for part in parts.values() for path in part.images], verify, root)
        return parts
    fit = Fit(cfg)
    cached = {}
    for name, (paths, labels) in parts.items():
        keep_size = name == "train" and cfg.augment.random_resized_crop is not None

        def load(path: Path, keep_size: bool = keep_size) -> Tensor:
            image = decode(path)
            # Large images are stored as the network reads them; small ones take less room as is.
            return image if keep_size or min(image.shape[1:]) < fit.size else fit(image)

        images = read_all(paths, load, root)
        if len({image.shape for image in images}) == 1:
            images = torch.stack(images)
        cached[name] = Labelled(images, labels)
    return cached


class ImageDataset(Dataset):
    """Images and labels that are transformed a batch at a time.

    Args:
        part: the images and labels.
        transform: from uint8 images to float32 ``[B, 3, S, S]``.
        root: the folder to name when a file cannot be read.
    """

    def __init__(self, part: Labelled, transform: EvalTransform, root: Path | None = None):
        self.images, self.labels = part
        self.transform, self.root = transform, root

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """The samples of a batch; DataLoader calls this where a dataset has it."""
        if isinstance(self.images, Tensor):
            images = self.images[indices]
        else:
            images = [self._read(self.images[index]) for index in indices]
        return list(zip(self.transform(images), self.labels[indices], strict=True))

    def _read(self, image: Tensor | Path) -> Tensor:
        if isinstance(image, Tensor):
            return image
        try:
            return decode(image)
        except Exception as error:  # noqa: BLE001  decoders fail in any way on a broken file
            raise unreadable(image, error, self.root) from error


class ImageData(LightningDataModule):
    """Three splits and their loaders, whose batches are normalised float32 images
    ``[B, 3, S, S]`` and int64 labels ``[B]``.

    Attributes:
        train, val, test: the splits, as map-style datasets; ``train`` augments.
        class_names, num_classes: the classes, in the order of the labels.
        in_channels, image_size: what the network is to take.
        preprocessing: what an image goes through when evaluated, as plain values.
    """

    in_channels = 3

    def __init__(
        self,
        cfg: DictConfig,
        seed: int,
        class_names: list[str],
        parts: dict[str, Labelled],
        transforms: dict[str, EvalTransform],
    ):
        super().__init__()
        self.cfg, self.seed = cfg, seed
        self.class_names, self.num_classes = class_names, len(class_names)
        self.image_size = cfg.image_size
        root = Path(cfg.root).expanduser() if cfg.root is not None else None
        self.train = ImageDataset(parts["train"], transforms["train"], root)
        self.val = ImageDataset(parts["val"], transforms["eval"], root)
        self.test = ImageDataset(parts["test"], transforms["eval"], root)
        self._plain_train = ImageDataset(parts["train"], transforms["eval"], root)

    @property
    def preprocessing(self) -> dict:
        return {
            "image_size": self.image_size,
            "mean": list(self.cfg.mean),
            "std": list(self.cfg.std),
            "crop_pct": self.cfg.crop_pct,
            "interpolation": self.cfg.interpolation,
        }

    def train_dataloader(self) -> DataLoader:
        """Shuffled; an odd last batch is dropped, as mixup pairs images and BatchNorm cannot
        normalise one."""
        last = len(self.train) % self.cfg.batch_size
        drop_last = len(self.train) > self.cfg.batch_size and last % 2 == 1
        return self._loader(self.train, self.cfg.batch_size, shuffle=True, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val, self.cfg.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.cfg.eval_batch_size)

    def calibration_dataloader(self, images: int) -> DataLoader:
        """A fixed random choice of ``images`` training images, without augmentation.

        Raises:
            UserError: if the training split has fewer.
        """
        total = len(self.train)
        if not 1 <= images <= total:
            raise UserError("calibration images", images, f"between 1 and {total} training images")
        generator = torch.Generator().manual_seed(self.cfg.split_seed)
        chosen = torch.randperm(total, generator=generator)[:images].tolist()
        subset = Subset(self._plain_train, chosen)
        return self._loader(subset, self.cfg.eval_batch_size)

    def _loader(self, dataset: Dataset, batch_size: int, **options) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size,
            num_workers=self.cfg.num_workers,
            # Its own generator in evaluation too: without one, a loader draws from the global
            # one, and how often a run evaluates would change how it trains.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.cfg.num_workers > 0,
            **options,
        )
