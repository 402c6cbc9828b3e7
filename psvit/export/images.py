"""Images to check and time an exported network with.

B images, T frames, S = the pixels a side that the network was trained on.
"""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from psvit.data.files import decode
from psvit.data.listing import READABLE, is_image, walk
from psvit.data.sources import read_source
from psvit.data.transforms import EvalTransform
from psvit.errors import UserError


def choose_images(
    description: dict[str, Any], count: int, folder: Path | None = None
) -> tuple[Tensor, str]:
    """Up to ``count`` images as the network reads them, and in words which they are.

    Those of ``folder``, evenly over its files (of its ``test/`` or ``val/`` where it has one); else
    scikit-learn's digits; for a network that does not take three channels, or event frames, noise.

    Args:
        description: what ``psvit.pruning.checkpoint.load`` returned: its ``preprocessing``, where
            it has one, is applied.

    Returns:
        float32 ``[B, C, S, S]``, or ``[B, T, C, S, S]`` where the network reads event frames.

    Raises:
        UserError: the folder holds no images that can be read, or the network takes none.
    """
    spec, recorded = description["model"], description.get("preprocessing") or {}
    steps = {"image_size": spec.get("image_size"), "crop_pct": 1.0, "interpolation": "bilinear"}
    steps |= {"mean": [0.5] * 3, "std": [0.5] * 3, **recorded}
    channels = spec.get("in_channels", len(steps["mean"]))
    if "frames" in steps or channels != 3:
        if folder is not None:
            raise UserError("--images", folder, "the network does not read images: leave it out")
        frames = [steps["frames"]] if "frames" in steps else []
        shape = (count, *frames, channels, steps["image_size"], steps["image_size"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)), "noise"
    transform = EvalTransform(OmegaConf.create(steps))
    how = "" if recorded else ", normalised to -1 … 1: model.yaml has no preprocessing"
    if folder is None:
        digits = read_source(OmegaConf.create({"name": "digits"})).train.images
        return transform(digits[:count]), f"scikit-learn's digits{how}"
    return transform(_read(Path(folder), count)), f"images of {folder}{how}"


def _read(folder: Path, count: int) -> list[Tensor]:
    part = next((folder / p for p in ("test", "val") if (folder / p).is_dir()), folder)
    try:
        found = walk(part)
    except OSError as error:
        raise UserError("--images", folder, f"expected a folder of images ({error})") from error
    paths = [Path(place, name) for place, names in found for name in names if is_image(name)]
    if not paths:
        raise UserError("--images", folder, f"expected images ({READABLE}) in it")
    count = min(count, len(paths))
    images = []
    for path in (paths[index * len(paths) // count] for index in range(count)):
        try:
            images.append(decode(path))
        except Exception as error:  # noqa: BLE001  decoders fail in any way on a broken file
            raise UserError("--images", path, f"cannot be read ({error})") from error
    return images
