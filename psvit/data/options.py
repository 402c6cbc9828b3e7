"""Checks of the ``dataset`` group, before anything is read."""

import math
import os
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
FRAME_INTERPOLATIONS = ("area", "bilinear", "nearest")
EVENT_DATASETS = ("cifar10_dvs", "dvs128_gesture", "n_mnist")
FOLDERS = ("image_folder", "imagenet")
DATASETS = ("digits", "cifar10", "cifar100", *FOLDERS, *EVENT_DATASETS)
# a side of an image; far more is a slip that asks for terabytes
MANY_PIXELS = 8192
LAYOUT = "a folder with train/<class>/<image> and test/<class>/<image> (or val/<class>/<image>)"


def value_of(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key; ``???`` where it is absent or still to be given."""
    return OmegaConf.select(cfg, key, default="???", throw_on_resolution_failure=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any, length: int, valid: Callable[[Any], bool]) -> bool:
    return (
        OmegaConf.is_list(value)
        and len(value) == length
        and all(_is_number(entry) and valid(entry) for entry in value)
    )


def _is_scale(value: Any) -> bool:
    return _is_list(value, 2, lambda scale: 0 < scale <= 1) and value[0] <= value[1]


def check_options(cfg: DictConfig) -> None:
    """Refuses any value of the ``dataset`` group that cannot be right.

    Raises:
        UserError: naming the full option (``dataset.image_size``), its value and what is allowed.
    """

    def require(keys: str, valid: Callable[[Any], bool], expected: str) -> None:
        for key in keys.split():
            value = value_of(cfg, key)
            if not valid(value):
                raise UserError(f"dataset.{key}", value, expected)

    def whole(keys: str, low: int, optional: bool = False, high: int = 2**63) -> None:
        require(
            keys,
            lambda value: (
                (optional and value is None)
                or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)
            ),
            f"a whole number, at least {low}"
            + (f" and at most {high}" if high < 2**63 else "")
            + (", or null for all of them" if optional else ""),
        )

    def within(keys: str, valid: Callable[[Any], bool], expected: str) -> None:
        require(keys, lambda value: _is_number(value) and valid(value), expected)

    def flag(keys: str) -> None:
        require(keys, lambda value: isinstance(value, bool), "true or false")

    require("name", lambda value: value in DATASETS, "one of " + ", ".join(DATASETS))
    whole("image_size", low=1, high=MANY_PIXELS)
    whole("batch_size eval_batch_size", low=1)
    # each is a process with torch in it
    whole("num_workers", low=0, high=max(16, 4 * (os.cpu_count() or 1)))
    # more moves every pixel out of the image, and asks for memory by its square
    whole("augment.crop_padding", low=0, high=cfg.image_size)
    whole("train_images val_images test_images", low=1, optional=True)
    # scikit-learn takes no larger seed.
    require(
        "split_seed",
        lambda seed: isinstance(seed, int) and 0 <= seed < 2**32,
        "a whole number from 0 to 2^32 - 1",
    )
    within("val_fraction", lambda f: 0 < f < 1, "between 0 and 1, both excluded")
    within("augment.hflip", lambda p: 0 <= p <= 1, "between 0 and 1")
    has_events = cfg.name in EVENT_DATASETS
    channels, many = (2, "two") if has_events else (3, "three")
    require(
        "mean",
        lambda value: _is_list(value, channels, lambda mean: True),
        f"{many} numbers, one for each channel",
    )
    require(
        "std",
        lambda value: _is_list(value, channels, lambda std: std > 0),
        f"{many} numbers above 0, one for each channel",
    )
    interpolations = FRAME_INTERPOLATIONS if has_events else INTERPOLATIONS
    require(
        "interpolation",
        lambda value: value in interpolations,
        "one of " + ", ".join(interpolations),
    )
    if has_events:
        whole("frames", low=1)
    else:
        within("crop_pct", lambda f: 0 < f <= 1, "above 0 and at most 1")
        within(
            "crop_pct",
            lambda f: cfg.image_size / f <= 2 * MANY_PIXELS,
            f"images would be resized to image_size / crop_pct pixels, above {2 * MANY_PIXELS}",
        )
        within("augment.random_erasing", lambda p: 0 <= p <= 1, "between 0 and 1")
        require(
            "augment.random_resized_crop",
            lambda value: value is None or _is_scale(value),
            "[smallest,largest] area of the crop, above 0 and at most 1, or null",
        )
        require(
            "augment.auto_augment",
            lambda value: value is None or isinstance(value, str),
            "a policy as timm writes it, such as rand-m7-mstd0.5-inc1, or null",
        )
    if cfg.name in ("digits", "cifar10_dvs"):
        within("test_fraction", lambda f: 0 < f < 1, "between 0 and 1, both excluded")
    if cfg.name == "digits":
        require(
            "root",
            lambda value: value is None,
            "must be null: scikit-learn brings the digits; dataset=image_folder reads a folder",
        )
        return
    layout = LAYOUT if cfg.name in FOLDERS else "a folder"
    require("root", lambda value: isinstance(value, str) and value not in ("", "???"), layout)
    if "repeats" in cfg.augment:
        whole("augment.repeats", low=1)
    if cfg.name in FOLDERS:
        flag("cache verify")
    elif has_events:
        flag("cache")
    else:
        flag("download")
