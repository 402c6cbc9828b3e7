"""Where images come from: scikit-learn's digits, torchvision's CIFAR, folders of image files.

Event datasets are read in ``psvit.data.events``.
"""

import logging
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from torchvision import datasets

from psvit.data.files import decode, unreadable
from psvit.data.labelled import Labelled, Source
from psvit.data.listing import READABLE, is_image, other_type, visible, walk
from psvit.data.options import EVENT_DATASETS, FOLDERS, LAYOUT
from psvit.errors import UserError

log = logging.getLogger(__name__)


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
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        train, test = (dataset(root, train=t, download=cfg.download) for t in (True, False))
    except (OSError, RuntimeError, HTTPException) as error:
        # made for a download that brought nothing
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
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
    train = _list_part(root, "train")
    class_names = _class_names(root, train)
    test = _list_part(root, "test" if has["test"] else "val")
    val = _list_part(root, "val") if has["val"] and has["test"] else None
    parts = [part for part in (train, val, test) if part is not None]
    labelled = {part.name: _label(root, part, class_names) for part in parts}
    _tell_left_out(root, parts)
    return Source(
        class_names,
        labelled["train"],
        None if val is None else labelled["val"],
        labelled[test.name],
        decode,
    )


class _Part(NamedTuple):
    """What is in ``root/name``: the paths of images by class, the names beside the class folders
    and those of no type that is read."""

    name: str
    images: dict[str, list[Path]]
    beside: list[str]
    others: list[str]


def _list_part(root: Path, name: str) -> _Part:
    images: dict[str, list[Path]] = {}
    others: list[str] = []
    try:
        classes, beside = visible(root / name)
        for label in classes:
            images[label] = []
            for folder, files in walk(root / name / label):
                images[label] += [Path(folder, file) for file in files if is_image(file)]
                others += [file for file in files if not is_image(file)]
    except OSError as error:
        raise unreadable(Path(error.filename), error, root, "folder") from error
    if not images:
        raise UserError("dataset.root", root, f"{name}/ holds no class folders; expected {LAYOUT}")
    if not any(images.values()):
        raise UserError("dataset.root", root, f"{name}/ holds no images ({READABLE})")
    return _Part(name, images, beside, others)


def _class_names(root: Path, train: _Part) -> list[str]:
    for name, images in train.images.items():
        if not images:
            raise UserError(
                "dataset.root",
                root,
                f"train/{name}/ holds no images ({READABLE}); add some or remove it",
            )
    if len(train.images) < 2:
        raise UserError("dataset.root", root, f"train/ has one class; expected two, as {LAYOUT}")
    return list(train.images)


def _label(root: Path, part: _Part, class_names: list[str]) -> Labelled:
    """The files of a part, labelled by the places of their classes in ``class_names``."""
    unknown = [name for name in part.images if name not in class_names]
    if unknown:
        raise UserError(
            "dataset.root",
            root,
            f"the class {unknown[0]!r} is in {part.name}/ and not in train/; every class of "
            f"{part.name}/ needs images to train on",
        )
    counts = [len(part.images.get(name, [])) for name in class_names]
    labels = torch.arange(len(class_names)).repeat_interleave(torch.tensor(counts))
    return Labelled([path for images in part.images.values() for path in images], labels)


def _tell_left_out(root: Path, parts: list[_Part]) -> None:
    """Warns of images that are not read: in one line, as there may be thousands."""
    beside = [f"{part.name}/{name}" for part in parts for name in part.beside if is_image(name)]
    names = (name for part in parts for name in [*part.beside, *part.others])
    types = [kind for kind in map(other_type, names) if kind]
    reasons = []
    if types:
        reasons.append(f"{len(types)} of other types ({', '.join(sorted(set(types)))})")
    if beside:
        reasons.append(f"{len(beside)} in no class folder ({beside[0]})")
    if reasons:
        log.warning(
            "%d images under %s are left out: %s; read are %s, in a class's folder",
            len(types) + len(beside),
            root,
            " and ".join(reasons),
            READABLE,
        )
