"""Opens and closes the loggers that the ``logger`` config group names."""

import logging
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from psvit.errors import UserError
from psvit.report.dashboard import define_curves

_log = logging.getLogger(__name__)


def open_loggers(config: DictConfig | None, ids: Mapping[str, str] | None = None) -> list[Logger]:
    """Make the loggers of ``config``, a mapping from a logger's name to its ``_target_`` config.

    ``ids``, as ``logger_ids`` gave them, are of the W&B runs that go on.

    A logger that cannot be had never stops a run: one whose package is not installed is left out,
    and W&B without an account or a network goes on offline. Either is said in one line.

    Raises:
        UserError: a value that the logger does not take, online or offline.
    """
    loggers = []
    for name, entry in (config or {}).items():
        again = {}
        if ids and "offline" in entry and ids.get("wandb"):
            again = {"id": ids["wandb"], "resume": "allow"}
        try:
            loggers.append(_opened(instantiate(entry, **again)))
        except Exception as error:  # whatever a logging service raises
            reason = _reason(error)
            if isinstance(error.__cause__, ModuleNotFoundError):
                _log.warning("logger=%s is left out, it is not installed: %s", name, reason)
            elif entry.get("offline") is False:
                loggers.append(_opened_offline(name, entry, again))
                _log.warning("logger=%s goes on offline: %s", name, reason)
            elif isinstance(error, OSError):  # of the disk, which all else needs too
                raise
            else:
                raise UserError("logger", name, reason) from error
    return loggers


def logger_ids(loggers: list[Logger]) -> dict[str, str]:
    """What a run that goes on needs to log to the same W&B run: its id, under ``wandb``."""
    live = wandb_run(loggers)
    return {} if live is None else {"wandb": live.id}


def wandb_run(loggers: list[Logger]) -> Any | None:
    """The live W&B run among ``loggers``; None without one, and on all processes but the first."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rank_zero_only.rank == 0:
            return logger.experiment
    return None


def close_loggers(loggers: list[Logger], failed: bool = False) -> None:
    """Finish the loggers, so that the next job of a multirun begins its own."""
    for logger in loggers:
        try:
            logger.finalize("failed" if failed else "success")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(failed))
        except Exception as error:
            _log.warning("%s was not closed: %s", type(logger).__name__, _reason(error))


def _opened(logger: Logger) -> Logger:
    if isinstance(logger, WandbLogger):
        # Lightning passes this setting always; W&B, which dropped it, then prints a warning
        vars(logger).get("_wandb_init", {}).pop("anonymous", None)
        # opened now, so that what is wrong shows before the training and not after it
        define_curves(logger.experiment)
    return logger


def _opened_offline(name: str, entry: DictConfig, again: Mapping[str, str]) -> Logger:
    try:
        # Lightning's ``offline`` alone comes too late once W&B has read its environment
        return _opened(instantiate(entry, offline=True, mode="offline", **again))
    except OSError:
        raise
    except Exception as error:  # what is wrong offline too is no matter of the network
        raise UserError("logger", name, _reason(error)) from error


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    # pydantic, which checks W&B's settings, takes three lines for each value
    problems = getattr(error, "errors", None)
    if callable(problems):
        values = [
            (".".join(map(str, each["loc"])), each["input"], each["msg"]) for each in problems()
        ]
        return "; ".join(f"{where}={given!r}: {said}" for where, given, said in values)
    return " ".join(str(error).split()) or type(error).__name__
