"""One training through Lightning: averaging, checkpoints, and which weights are kept."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from psvit.training.module import Classifier


def fit(
    module: Classifier,
    data: LightningDataModule,
    trainer: DictConfig,
    folder: Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback] = (),
) -> nn.Module:
    """Train ``module`` by its recipe.

    Every epoch is checkpointed under ``folder/checkpoints/<prefix>``. A training that finds its
    last epoch there goes on from it; one that ends clears the folder.

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
    """
    recipe, prefix = module.recipe, module.prefix
    checkpoints = ModelCheckpoint(
        folder / "checkpoints" / prefix,
        filename="best",
        monitor=f"{prefix}/val_top1" if recipe.keep == "best" else None,
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    averaging = []
    if recipe.ema_decay is not None:
        averaging = [EMAWeightAveraging(decay=recipe.ema_decay)]
    lightning = instantiate(
        trainer,
        max_epochs=recipe.epochs,
        logger=list(loggers),
        default_root_dir=str(folder),
        callbacks=[RichProgressBar(leave=False), *callbacks, *averaging, checkpoints],
    )
    last = Path(checkpoints.dirpath) / "last.ckpt"
    # an evaluation may have come before, and Lightning leaves the mode as it finds it
    lightning.fit(module.train(), data, ckpt_path=str(last) if last.exists() else None)
    if recipe.keep == "best":
        saved = torch.load(checkpoints.best_model_path, map_location="cpu", weights_only=False)
        module.load_state_dict(saved["state_dict"])
    shutil.rmtree(checkpoints.dirpath, ignore_errors=True)
    return module.network
