"""Where images come from: scikit-learn's digits, torchvision's CIFAR, folders of image files.

Event datasets are read in ``psvit.data.events``.
"""

import os
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from torchvision import datasets

from psvit.data.files import decode
from psvit.data.labelled import Labelled, Source
from psvit.data.options import EVENT_DATASETS, FOLDERS, LAYOUT
from psvit.errors import UserError


def read_source(cfg: DictConfig) -> Source:
    """Reads (in-memory datasets) or lists (folders) the dataset that ``cfg.name`` names.

    Raises:
        UserError: if it is not there, or not laid out as it should be.
    """
    if cfg.name == "digits":
        return _digits()
    root = Path(cfg.root).expanduser()
    if cfg.name in EVENT_DATASETS:
        # imported here: images need neither spikingjelly's datasets nor what those import
        from psvit.data.events import read_events

        return read_events(cfg, root)
    return _image_folder(root) if cfg.name in FOLDERS else _cifar(cfg, root)


def _digits() -> Source:
    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    images = pixels[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target).long()
    return Source([str(name) for name in digits.target_names], Labelled(images, labels), None, None)


def _cifar(cfg: DictConfig, root: Path) -> Source:
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[cfg.name]
    try:
        train, test = (dataset(root, train=t, download=cfg.download) for t in (True, False))
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            "dataset.root",
            cfg.root,
            f"does not hold {dataset.filename} unpacked as {dataset.base_folder}/, and it was not "
            f"downloaded ({error}); put {dataset.filename} there, set dataset.download=true with a "
            "network, or read images with dataset=image_folder dataset.root=DIR",
        ) from error

    def labelled(part: datasets.CIFAR10) -> Labelled:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        return Labelled(images, torch.tensor(part.targets))

    return Source(list(train.classes), labelled(train), None, labelled(test))


def _image_folder(root: Path) -> Source:
    if not root.is_dir():
        raise UserError("dataset.root", root, f"no such folder; expected {LAYOUT}")
    has = {part: (root / part).is_dir() for part in ("train", "val", "test")}
    if not has["train"] or not (has["val"] or has["test"]):
        missing = "train/" if not has["train"] else "test/ or val/"
        raise UserError("dataset.root", root, f"has no {missing}; expected {LAYOUT}")
    train, class_names = _list_images(root, "train", None)
    if len(class_names) < 2:
        raise UserError("dataset.root", root, f"train/ has one class; expected two, as {LAYOUT}")
    test, _ = _list_images(root, "test" if has["test"] else "val", class_names)
    val = _list_images(root, "val", class_names)[0] if has["val"] and has["test"] else None
    return Source(class_names, train, val, test, decode)


class _Folder(datasets.ImageFolder):
    """Without hidden folders, such as an editor's .ipynb_checkpoints, for classes."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        found = os.scandir(directory)
        names = sorted(e.name for e in found if e.is_dir() and not e.name.startswith("."))
        if not names:
            raise FileNotFoundError(f"no class folder in {directory}")
        return names, {name: index for index, name in enumerate(names)}


def _list_images(
    root: Path, part: str, class_names: list[str] | None
) -> tuple[Labelled, list[str]]:
    """The files of ``root/part``, labelled by their place in ``class_names`` (None: its own)."""
    try:
        folder = _Folder(root / part, allow_empty=True)
    except FileNotFoundError as error:
        raise UserError(
            "dataset.root", root, f"{part}/ holds no class folders; expected {LAYOUT}"
        ) from error
    readable = ", ".join(datasets.folder.IMG_EXTENSIONS)
    if not folder.samples:
        raise UserError("dataset.root", root, f"{part}/ holds no images ({readable})")
    if class_names is None:
        empty = sorted(set(range(len(folder.classes))) - set(folder.targets))
        if empty:
            raise UserError(
                "dataset.root",
                root,
                f"train/{folder.classes[empty[0]]}/ holds no images ({readable}); "
                "add some or remove it",
            )
        class_names = folder.classes
    unknown = sorted(set(folder.classes) - set(class_names))
    if unknown:
        raise UserError(
            "dataset.root",
            root,
            f"the class {unknown[0]!r} is in {part}/ and not in train/; every class of {part}/ "
            "needs images to train on",
        )
    place = {name: index for index, name in enumerate(class_names)}
    labels = torch.tensor([place[folder.classes[target]] for target in folder.targets])
    return Labelled([Path(path) for path, _ in folder.samples], labels), class_names
