"""Who is in which split: stratified, and the same for every run of a dataset."""

import logging

import torch
from omegaconf import DictConfig
from sklearn.model_selection import train_test_split

from psvit.data.labelled import Labelled, Source
from psvit.errors import UserError

_log = logging.getLogger(__name__)


def split(source: Source, cfg: DictConfig) -> dict[str, Labelled]:
    """Makes the ``train``, ``val`` and ``test`` splits that the source lacks, and shortens them.

    Which image falls where depends on ``cfg.split_seed`` alone and not on the run's seed: a
    network trained under one seed is never tested, under another, on what it was trained on.

    Raises:
        UserError: if a class has too few images, or a split would have.
    """
    train, val, test = source.train, source.val, source.test
    if test is None:
        test, train = _divide(train, cfg, source.class_names, "test_fraction")
    if val is None:
        val, train = _divide(train, cfg, source.class_names, "val_fraction")
    parts = {"train": train, "val": val, "test": test}
    for name, part in parts.items():
        limit = f"{name}_images"
        if cfg[limit] is not None and cfg[limit] != len(part.labels):
            parts[name], _ = _divide(part, cfg, source.class_names, limit)
    for name in ("val", "test"):
        _warn_of_missing(name, parts, source.class_names)
    return parts


def _warn_of_missing(name: str, parts: dict[str, Labelled], class_names: list[str]) -> None:
    there, trained = (parts[part].labels.unique().tolist() for part in (name, "train"))
    lacks = [class_names[label] for label in trained if label not in there]
    if lacks:
        some = ", ".join(lacks[:5]) + (f" and {len(lacks) - 5} more" if len(lacks) > 5 else "")
        _log.warning("the %s split has no images of classes it is trained on: %s", name, some)


def _divide(
    part: Labelled, cfg: DictConfig, class_names: list[str], option: str
) -> tuple[Labelled, Labelled]:
    """Draws the share that ``option`` asks for, each class in proportion; returns it and the rest.

    An ``option`` named ``*_fraction`` is a share of the images, any other a number of them.
    """
    total, value = len(part.labels), cfg[option]
    if not option.endswith("_fraction") and value > total:
        reason = f"expected at most {total}, the images that are there; null takes them all"
        raise UserError(f"dataset.{option}", value, reason)
    counts = torch.bincount(part.labels, minlength=len(class_names))
    # The smallest class that is there: one without test images is no obstacle.
    smallest = int(torch.where(counts == 0, total, counts).argmin())
    if counts[smallest] < 2:
        raise UserError(
            f"dataset.{option}",
            value,
            f"the class {class_names[smallest]!r} has 1 image to split; it needs at least 2",
        )
    classes = int((counts > 0).sum())
    is_fraction = option.endswith("_fraction")
    chosen = round(total * value) if is_fraction else value
    if not classes <= chosen <= total - classes:
        low, high = classes, total - classes
        allowed = (
            f"{low / total:.3g} and {high / total:.3g}" if is_fraction else f"{low} and {high}"
        )
        raise UserError(
            f"dataset.{option}",
            value,
            f"must be between {allowed}, for {total} images of {classes} classes"
            + ("" if is_fraction else f" ({total} or null takes them all)"),
        )
    taken, rest = train_test_split(
        torch.arange(total).numpy(),
        train_size=chosen,
        test_size=total - chosen,
        stratify=part.labels.numpy(),
        random_state=cfg.split_seed,
    )
    taken, rest = torch.from_numpy(taken), torch.from_numpy(rest)
    training = taken if option == "train_images" else rest
    left = torch.bincount(part.labels[training], minlength=len(class_names))
    lost = ((counts > 0) & (left == 0)).nonzero()
    if len(lost) and option not in ("val_images", "test_images"):
        raise UserError(
            f"dataset.{option}",
            value,
            f"leaves no training image of the class {class_names[int(lost[0])]!r}",
        )
    return part.take(taken), part.take(rest)
