"""A run that was stopped goes on: ``python run.py resume=RUN_FOLDER``."""

import errno
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError
from psvit.files import read_json, write_json

CONFIG, STATE = "config.yaml", "run.json"
# in a run's folder, the results of its stages, until all are done
DONE = "stages"
# what may be said again: no value of the run, or the leave to import a module
ALLOWED = ("model.module", "print_config", "hydra/job_logging", "hydra/hydra_logging")
# the classes that a run's config may name: Lightning's own, and nothing that they import
CLASSES = re.compile(
    r"lightning\.pytorch\.(Trainer|(callbacks|loggers|plugins|profilers|strategies)\.[A-Z]\w*)"
)


# a disk that is full or must not be written, and a folder that is none
DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
)


class FolderTaken(UserError):
    """A run's folder that serves another run: nothing of this one may be written there."""


class Stopped(BaseException):
    """The process was asked to end; no error, so that nothing takes it for one."""

    def __init__(self, number: int, folder: Path):
        self.exit_code = 128 + number
        super().__init__(
            f"stopped by {signal.Signals(number).name}; to go on: python run.py resume={folder}"
        )


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Within it, SIGTERM and Ctrl-C raise ``Stopped``, so that locks and loggers are closed.

    A second one ends the process at once. Workers that were forked keep what is usual.
    """
    owner = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number, folder) if os.getpid() == owner else KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        for each in before:
            signal.signal(each, stop)
    except ValueError:  # not the main thread: whoever started it stops it
        before = {}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with the run's folder as Hydra's, where it names one to resume.

    Raises:
        UserError: the folder is no run's, or an option would change the run.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given:
        return list(arguments)
    value = OverridesParser.create().parse_override(given[-1]).value()
    if value is None:
        return list(arguments)
    folder = Path(str(value)).absolute()
    if not (folder / CONFIG).is_file():
        raise UserError("resume", value, f"expected the folder of a run, with its {CONFIG}")
    for argument in arguments:
        name = argument.split("=")[0].lstrip("+~")
        if argument not in given and name not in ALLOWED:
            raise UserError(
                "resume",
                value,
                f"{argument} beside it: a run goes on with the config of its folder; expected no "
                f"further option but {', '.join(ALLOWED[:2])}",
            )
    place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    # Hydra's notes on how the run was composed stay as they were
    return [*arguments, f"hydra.run.dir='{place}'", "hydra.output_subdir=null"]


def stored_config(given: DictConfig, folder: Path) -> DictConfig:
    """The config of a run's folder, which may have been moved.

    Args:
        given: the config that the command line composes: the few values that may be said again.
        folder: the run's.

    Raises:
        UserError: the file cannot be read, or names code that it must not.
    """
    try:
        plain = yaml.safe_load((folder / CONFIG).read_text())
        written = plain["paths"]["output_dir"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError) as error:
        raise UserError("resume", folder, f"its {CONFIG} cannot be read: {error}") from error
    _check_classes(plain, folder)
    module = plain.get("model", {}).get("module")
    if module is not None and given.model.get("module") != module:
        raise UserError(
            "resume", folder, f"its network is code of yours: add model.module={module}"
        )
    plain = _moved(plain, written, str(folder))
    cfg = OmegaConf.create({**plain, "resume": str(folder), "print_config": given.print_config})
    OmegaConf.set_struct(cfg, True)
    return cfg


def _check_classes(value: Any, folder: Path) -> None:
    if isinstance(value, dict):
        target = value.get("_target_")
        if target is not None and not CLASSES.fullmatch(str(target)):
            raise UserError(
                "resume", folder, f"its {CONFIG} names {target}, which is not run from a folder"
            )
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, (dict, list)):
            _check_classes(each, folder)


def _moved(value: Any, written: str, folder: str) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, written, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, written, folder) for each in value]
    return folder if value == written else value


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder.

    Raises:
        FolderTaken: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
        yield
    except Timeout as error:
        raise FolderTaken(
            "paths.output_dir", folder, "another process works on this run: expected another folder"
        ) from error
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise not_written(error, folder) from error
    finally:
        lock.release()


def is_run_of(folder: Path, config: str) -> bool:
    """Whether the run in ``folder``, stopped or finished, is the one of ``config``, as YAML.

    So a command that is said again, a multirun for instance, does what is not done yet.

    Raises:
        FolderTaken: it is the run of another config, which is finished or has done something.
    """
    stored = folder / CONFIG
    if not stored.is_file():
        return False
    if stored.read_text(encoding="utf-8", errors="replace") == config:
        return True
    if read_state(folder)["finished"]:
        raise FolderTaken(
            "paths.output_dir",
            folder,
            "holds a finished run of other options: expected another folder, or this one removed",
        )
    # hours of work may lie there; a run that ended before its first stage leaves locks at most
    if any(each.name[0] != "." for each in (folder / DONE).glob("*")):
        raise FolderTaken(
            "paths.output_dir",
            folder,
            f"holds a stopped run of other options: go on with resume={folder}, "
            "take another folder, or remove it",
        )
    return False


def not_written(error: OSError, folder: Path | None = None) -> UserError:
    """What the system says of a file, in one line that tells how to go on."""
    goes_on = f", then go on with resume={folder}" if folder and (folder / CONFIG).exists() else ""
    return UserError(
        "paths.output_dir",
        error.filename or folder,
        f"{error.strerror}; expected a disk with room and a folder that can be written{goes_on}",
    )


def read_state(folder: Path) -> dict[str, Any]:
    """What the run's folder tells of it: ``finished``, and ``loggers``, each one's id."""
    state = {"finished": False, "loggers": {}}
    path = folder / STATE
    return {**state, **read_json(path)} if path.exists() else state


def write_state(folder: Path, **state: Any) -> None:
    """Note what ``read_state`` tells."""
    write_json(folder / STATE, {**read_state(folder), **state})
