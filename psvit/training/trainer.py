"""Lightning's Trainer as the ``trainer`` group has it: for training, and to see that it can be."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError

# options of the group that are no arguments of Lightning's: ``fit`` follows them itself
OWN = ("compile", "cuda_graphs", "sync_batchnorm")
# arguments that every training gives, in place of whatever a config says
GIVEN = ("callbacks", "default_root_dir", "logger", "num_sanity_val_steps", "plugins")
# where training runs is checked by itself, so that Lightning is not asked for GPUs or processes;
# deterministic changes torch for the whole process
_PLACE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
_CHECKED = {**_PLACE, "deterministic": None, "enable_progress_bar": False}


def make_trainer(trainer: DictConfig, **given: Any) -> Trainer:
    """The Trainer of a training.

    Args:
        trainer: the config group.
        **given: arguments in place of the group's.
    """
    options = OmegaConf.to_container(trainer, resolve=True)
    return instantiate({name: x for name, x in options.items() if name not in OWN}, **given)


def check_trainer(trainer: DictConfig) -> None:
    """Raise a UserError for what Lightning would refuse, before there is something to train.

    Args:
        trainer: the config group; its device may be another machine's.
    """
    _check_names(trainer)
    try:
        _try(trainer)
    except Exception as error:
        for name in trainer:
            try:
                alone = {key: trainer[key] for key in {"_target_", name}}
                _try(OmegaConf.create(alone))
            except Exception as its_own:
                raise UserError(f"trainer.{name}", trainer[name], _reason(its_own)) from error
        raise UserError("trainer", "...", _reason(error)) from error


def check_shares(trainer: DictConfig, batches: Mapping[str, int]) -> None:
    """Raise a UserError for a share of the batches that comes to none: Lightning tells it late.

    Args:
        trainer: the config group.
        batches: how many an epoch has, ``train`` and ``val``.
    """
    limits = {"limit_train_batches": ("train",), "limit_val_batches": ("val",)}
    for name, loaders in {**limits, "overfit_batches": ("train", "val")}.items():
        share = trainer.get(name)
        for loader in loaders:
            count = batches[loader]
            # a whole number is one of batches
            if isinstance(share, float) and 0.0 < share < 1.0 and int(share * count) < 1:
                reason = f"is less than one of {count} {loader} batches: expected a larger share"
                raise UserError(f"trainer.{name}", share, reason)


def _check_names(trainer: DictConfig) -> None:
    target = trainer.get("_target_")
    try:
        with _silent():
            made = get_class(target)
        right = issubclass(made, Trainer)
    except Exception:
        right = False
    if not right:
        raise UserError("trainer._target_", target, "expected lightning.pytorch.Trainer")
    known = inspect.signature(made).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    for name, value in trainer.items():
        if name in GIVEN:
            raise UserError(f"trainer.{name}", value, "has no effect: every training has its own")
        hydras = str(name).startswith("_")
        if name not in known and name not in OWN and not takes_any and not hydras:
            raise UserError(f"trainer.{name}", value, "Lightning's Trainer has no such argument")


def _try(trainer: DictConfig) -> None:
    with _silent():
        make_trainer(trainer, logger=False, callbacks=[ModelCheckpoint()], **_CHECKED)


def _reason(error: Exception) -> str:
    # Hydra's own text names the target, not what is wrong
    wrapped = isinstance(error, InstantiationException) and error.__cause__
    return f"Lightning refuses it: {wrapped or error}"


@contextmanager
def _silent() -> Iterator[None]:
    """Lightning tells devices and modes, which are no news of a Trainer that trains nothing; Hydra
    tells of a class that is not there, beside raising it."""
    names = ("lightning.pytorch", "lightning.fabric", "hydra.utils")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
