"""One training through Lightning: averaging, checkpoints, and which weights are kept."""

import io
import logging
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchCheckpointIO
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from psvit.data import ImageData
from psvit.errors import UserError
from psvit.files import write_whole
from psvit.processes import from_first, world_size
from psvit.training.callbacks import EpochLines, KeepRandomState, MovingAverage, StartCounts
from psvit.training.module import Classifier
from psvit.training.sync import SyncBatchNorms
from psvit.training.trainer import make_trainer

_log = logging.getLogger(__name__)
# what Lightning reads of a checkpoint to go on from it
_GOES_ON = (
    *("state_dict", "epoch", "global_step", "loops", "callbacks"),
    *("optimizer_states", "lr_schedulers", "pytorch-lightning_version"),
)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: a run may be killed, or the disk be full."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def fit(
    module: Classifier,
    data: ImageData,
    trainer: DictConfig,
    folder: Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback] = (),
) -> nn.Module:
    """Train ``module`` by its recipe.

    Every epoch is checkpointed under ``folder/checkpoints/<prefix>``. A training that finds its
    last epoch there goes on from it, and ends with the weights it would have ended with. The caller
    clears the folder when the weights are safe.

    Args:
        module: the network and its recipe.
        data: training and validation loaders.
        trainer: the config group of Lightning's Trainer.
        folder: the run's folder.
        loggers: Lightning's loggers.
        callbacks: further callbacks. They set up before the weights are averaged, so that a
            network that is cut on the way is averaged as it is after the cut.

    Returns:
        The trained network: the weights that the recipe keeps.

    Raises:
        UserError: the loss is no longer a number; the last epoch's checkpoint stays. Or a
            checkpoint cannot be read, or has changed.
    """
    recipe = module.recipe
    # the first process writes them, and all read what it wrote
    checkpoints = Path(from_first(str(folder))) / "checkpoints" / module.prefix
    averaging = [] if recipe.ema_decay is None else [MovingAverage(recipe.ema_decay)]
    # the last epoch's after the best one's, whose score it holds
    savers = [
        ModelCheckpoint(
            checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False
        )
    ]
    keeps_best = recipe.keep == "best"
    # a base network begins with chance weights: the best of its epochs is kept, however bad
    start_counts = keeps_best and module.prefix == "finetune"
    start = checkpoints / "start.ckpt"
    if keeps_best:
        best = ModelCheckpoint(
            checkpoints,
            "best",
            monitor=f"{module.prefix}/val_top1",
            mode="max",
            enable_version_counter=False,
        )
        savers.insert(0, best)
    bar = Console().is_terminal and trainer.get("enable_progress_bar", True)
    if trainer.compile:
        module.compile_network()
    if trainer.cuda_graphs:
        image, _ = data.val[0]
        module.graph_network(image.repeat(data.cfg.batch_size, *[1] * image.dim()))
    plugins: list[Any] = [WholeCheckpoints()]
    if trainer.sync_batchnorm and world_size() > 1:
        plugins.append(SyncBatchNorms(on_gpu=trainer.accelerator != "cpu"))
    lightning = make_trainer(
        trainer,
        # or Lightning puts up a bar of its own
        enable_progress_bar=bar,
        max_epochs=recipe.epochs,
        logger=list(loggers),
        plugins=plugins,
        # all batches before the first step; 2 is Lightning's own choice
        num_sanity_val_steps=-1 if start_counts else 2,
        default_root_dir=str(folder),
        callbacks=[
            RichProgressBar(leave=False) if bar else EpochLines(),
            KeepRandomState(),
            *callbacks,
            *([StartCounts(start)] if start_counts else []),
            *averaging,
            *savers,
        ],
    )
    dtype = next(module.network.parameters()).dtype
    last, kept = checkpoints / "last.ckpt", checkpoints / f"{recipe.keep}.ckpt"
    # an evaluation may have come before, and Lightning leaves the mode as it finds it
    lightning.fit(
        module.train(),
        data,
        ckpt_path=str(last) if _readable(last, *_GOES_ON) else None,
        weights_only=True,
    )
    # Lightning's `fast_dev_run` leaves none
    if _readable(kept, "state_dict"):
        saved = torch.load(kept, map_location="cpu", weights_only=True)
        if start_counts and _readable(start, "state_dict", "top1"):
            before = torch.load(start, map_location="cpu", weights_only=True)
            if before["top1"] >= best.best_model_score:
                said = "%s: no epoch validates better than the network before the first, %.2f %%"
                _log.info(said, module.prefix, 100 * before["top1"])
                saved = before
        module.load_state_dict(saved["state_dict"])
    lightning.strategy.barrier()
    # `precision=64-true` and the like have changed it
    return module.network.to(dtype)


def _readable(path: Path, *parts: str) -> bool:
    """Whether there is a checkpoint, as it was written, with ``parts``."""
    if not path.exists():
        return False
    try:
        # torch compares no checksums, and would take weights in which bytes have changed
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} has changed since it was written")
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if missing := [part for part in parts if part not in saved]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = f"cannot be read ({error}); remove {path.parent} to train from the first epoch"
        raise UserError("resume", path, reason) from error
    return True
