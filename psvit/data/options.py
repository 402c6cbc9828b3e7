"""Checks of the ``dataset`` group, before anything is read."""

import os

from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError
from psvit.options import FLAG, POSITIVE, Allowed, list_of, number, one_of, text, whole

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
FRAME_INTERPOLATIONS = ("area", "bilinear", "nearest")
EVENT_DATASETS = ("cifar10_dvs", "dvs128_gesture", "n_mnist")
FOLDERS = ("image_folder", "imagenet")
DATASETS = ("digits", "cifar10", "cifar100", *FOLDERS, *EVENT_DATASETS)
# a side of an image; far more is a slip that asks for terabytes
MANY_PIXELS = 8192
LAYOUT = "a folder with train/<class>/<image> and test/<class>/<image> (or val/<class>/<image>)"

_CHANCE = number(0.0, 1.0, "between 0 and 1")
_PART = number(0.0, 1.0, "above 0 and at most 1", excluded=(0.0,))
_SPLIT = number(0.0, 1.0, "between 0 and 1, both excluded", excluded=(0.0, 1.0))


def check_options(cfg: DictConfig) -> None:
    """Refuses any value of the ``dataset`` group that cannot be right.

    Raises:
        UserError: naming the full option (``dataset.image_size``), its value and what is allowed.
    """
    one_of(DATASETS).check("dataset.name", _value(cfg, "name"))
    whole(1, MANY_PIXELS).check("dataset.image_size", _value(cfg, "image_size"))
    options = _allowed(cfg)
    for option, allowed in options.items():
        allowed.check(f"dataset.{option}", _value(cfg, option))
    if "crop_pct" in options and cfg.image_size / cfg.crop_pct > 2 * MANY_PIXELS:
        raise UserError(
            "dataset.crop_pct",
            cfg.crop_pct,
            f"images would be resized to image_size / crop_pct pixels, above {2 * MANY_PIXELS}",
        )


def _value(cfg: DictConfig, key: str) -> object:
    """The plain value at a dotted key; ``???`` where it is absent or still to be given."""
    value = OmegaConf.select(cfg, key, default="???", throw_on_resolution_failure=False)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _allowed(cfg: DictConfig) -> dict[str, Allowed]:
    """What each option of this dataset may be, by its name without ``dataset.``."""
    has_events = cfg.name in EVENT_DATASETS
    channels, many = (2, "two") if has_events else (3, "three")
    limit = whole().or_null("for all of them")
    options = {
        "batch_size": whole(),
        "eval_batch_size": whole(),
        # each is a process with torch in it
        "num_workers": whole(0, max(16, 4 * (os.cpu_count() or 1))),
        # more moves every pixel out of the image, and asks for memory by its square
        "augment.crop_padding": whole(0, cfg.image_size),
        "augment.hflip": _CHANCE,
        "train_images": limit,
        "val_images": limit,
        "test_images": limit,
        # scikit-learn takes no larger seed
        "split_seed": whole(0, 2**32 - 1, "a whole number from 0 to 2^32 - 1"),
        "val_fraction": _SPLIT,
        "mean": list_of(number(-1e9, 1e9, ""), channels, f"{many} numbers, one for each channel"),
        "std": list_of(POSITIVE, channels, f"{many} numbers above 0, one for each channel"),
        "interpolation": one_of(FRAME_INTERPOLATIONS if has_events else INTERPOLATIONS),
    }
    if has_events:
        options |= {"frames": whole(), "cache": FLAG}
    else:
        options |= {
            "crop_pct": _PART,
            "augment.random_erasing": _CHANCE,
            "augment.random_resized_crop": list_of(_PART, 2)
            .where(
                lambda scale: scale[0] <= scale[1],
                "[smallest,largest] area of the crop, above 0 and at most 1",
            )
            .or_null(),
            "augment.auto_augment": text(
                "a policy as timm writes it, such as rand-m7-mstd0.5-inc1"
            ).or_null(),
        }
    if cfg.name in ("digits", "cifar10_dvs"):
        options["test_fraction"] = _SPLIT
    if cfg.name == "digits":
        reason = "null: scikit-learn brings the digits; dataset=image_folder reads a folder"
        return options | {"root": Allowed(lambda x: x is None, reason)}
    if "repeats" in cfg.augment:
        options["augment.repeats"] = whole()
    if cfg.name in FOLDERS:
        options |= {"cache": FLAG, "verify": FLAG}
    elif not has_events:
        options["download"] = FLAG
    folder = LAYOUT if cfg.name in FOLDERS else "a folder"
    return options | {"root": text("").where(lambda x: x != "???", folder)}
