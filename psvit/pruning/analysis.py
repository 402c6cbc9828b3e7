"""The sensitivity table that the config asks for: measured or estimated, in what batches."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from psvit.data import ImageData
from psvit.neurons import reset_state
from psvit.pruning.estimate import estimate_sensitivity
from psvit.pruning.options import SensitivityOptions
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity import Mending, Stopping, measure_sensitivity
from psvit.pruning.sensitivity.processes import of_all, rank_and_world
from psvit.pruning.sensitivity.replay import Replay

_log = logging.getLogger(__name__)

# share of the free memory that the analysis may fill
FREE_SHARE = 0.5
# what a segment's modules give, and as much again while they compute
WORKING = 2.0
# batches that adaptive rows are looked at behind, at least
LOOKS = 8
MEMINFO = Path("/proc/meminfo")


def analyse(
    options: SensitivityOptions,
    data: ImageData,
    calibration_images: int,
    model: nn.Module,
    ratios: Sequence[float],
    ranking: Ranking,
    path: Path,
    device: torch.device,
    on_row: Callable[[int, int], None],
    reference: nn.Module | None,
    ridge: float,
) -> pd.DataFrame:
    """Write the table to ``path``; see ``measure_sensitivity`` and ``estimate_sensitivity``."""
    images = len(data.val) if options.images is None else min(options.images, len(data.val))
    image = data.val[0][0].unsqueeze(0)
    most = math.ceil(images / rank_and_world()[1])
    if options.adaptive:
        most = math.ceil(images / LOOKS)
    size = batch_size(model, image, device, min(most, data.cfg.eval_batch_size))
    # in a random order where a part must stand for the whole
    batches = data.val_dataloader(options.images, size, shuffled=options.adaptive)
    arguments = (model, batches, ratios, ranking, path, device)
    if options.method == "estimated":
        calibration = data.calibration_dataloader(calibration_images)
        return estimate_sensitivity(
            *arguments, calibration, options.measured_rows, on_row, reference, options.autocast
        )
    stopping = Stopping(options.tolerance, options.confidence) if options.adaptive else None
    mending = None
    if options.mended:
        calibration = data.calibration_dataloader(calibration_images)
        mending = Mending(model, ranking, calibration, ridge, device)
    return measure_sensitivity(*arguments, on_row, reference, options.autocast, stopping, mending)


def batch_size(model: nn.Module, image: Tensor, device: torch.device, most: int) -> int:
    """``most``, or fewer images where the analysis of so many would not fit into free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    fits = max(1, int(FREE_SHARE * free / (WORKING * bytes_an_image(model.to(device), image))))
    if fits < most:
        _log.info("sensitivity: batches of %d images, for %.1f GB free memory", fits, free / 1e9)
    # of several processes all take the same batches
    return min(of_all(min(most, fits)))


def _free_memory() -> int:
    """Bytes that can be had without swapping; all of the machine's where nothing tells."""
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@torch.inference_mode()
def bytes_an_image(model: nn.Module, image: Tensor) -> int:
    """What the analysis keeps of an image: all that the modules of the widest segment give."""
    x = model.eval().encode(image.to(next(model.parameters())))
    widest = 0
    with _at_rest(model):
        for segment in model.segments().values():
            replay = Replay(segment)
            entered = x
            x = replay.record(partial(model.step, segment, x), x)
            kept = {id(y): y.nbytes for y in (entered, x, *replay.outputs)}
            widest = max(widest, sum(kept.values()))
    return widest


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    reset_state(model)
    try:
        yield
    finally:
        reset_state(model)
