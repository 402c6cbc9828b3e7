"""A run's folder: whose it is, what is done there, and how a run ends that is told to stop."""

import errno
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from psvit.errors import UserError
from psvit.files import read_json, write_json

CONFIG, STATE = "config.yaml", "run.json"
# in a run's folder, the results of its stages, until all are done
DONE = "stages"

# a disk that is full or must not be written, a folder that is none, a name or a file that is more
# than the file system takes
_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EFBIG,
)


class FolderTaken(UserError):
    """A run's folder that serves another run: nothing of this one may be written there."""


class Stopped(BaseException):
    """The process was asked to end; no error, so that nothing takes it for one."""

    def __init__(self, number: int, how: str):
        self.exit_code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}; to go on: {how}")


def stoppable(folder: Path) -> AbstractContextManager[None]:
    """Within it, SIGTERM and Ctrl-C raise ``Stopped``, so that locks and loggers are closed.

    A second one ends the process at once. Workers that were forked keep what is usual.
    """
    return _stopping(lambda number: Stopped(number, f"python run.py resume={folder}"))


def launching(folder: Callable[[], Path | None]) -> AbstractContextManager[None]:
    """As ``stoppable``, outside of jobs: those that a launcher runs in processes end first.

    Args:
        folder: says where the jobs are, once that is known.
    """

    def stopped(number: int) -> Stopped:
        # Ctrl-C reaches them by itself
        _end_children(patience=10.0 if number == signal.SIGINT else 0.0)
        jobs = folder()
        return Stopped(number, "the same command" + (f", hydra.sweep.dir={jobs}" if jobs else ""))

    return _stopping(stopped)


def _end_children(patience: float) -> None:
    children = multiprocessing.active_children()
    for wait, end in ((patience, BaseProcess.terminate), (20.0, BaseProcess.kill)):
        until = time.monotonic() + wait
        for child in children:
            child.join(max(0.0, until - time.monotonic()))
        for child in children:
            if child.is_alive():
                end(child)


@contextmanager
def _stopping(raised: Callable[[int], Stopped]) -> Iterator[None]:
    owner = os.getpid()
    told: Stopped | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal told
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != owner:
            raise KeyboardInterrupt
        told = raised(number)
        raise told

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        for each in before:
            signal.signal(each, stop)
    except ValueError:  # not the main thread: whoever started it stops it
        before = {}
    try:
        yield
    except BaseException as error:
        # what a library clears up on the way may fail halfway through what it did (OmegaConf's
        # flags), and Lightning's loops end with a SystemExit of their own
        if told is None or error is told:
            raise
        raise told from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


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
            "hydra.run.dir", folder, "another process works on this run: expected another folder"
        ) from error
    except OSError as error:
        if not of_the_disk(error):
            raise
        raise not_written(error, folder) from error
    finally:
        lock.release()


def is_run_of(folder: Path, config: str) -> bool:
    """Whether the run in ``folder``, stopped or finished, is the one of ``config``, as YAML.

    So a command that is said again, a multirun for instance, does what is not done yet. What is
    kept for other runs may lie elsewhere: ``paths.cache_dir`` depends on the working directory.

    Raises:
        FolderTaken: it is the run of another config, which is finished or has done something, or
            something else lies where a run keeps what it has done.
    """
    stored = folder / CONFIG
    # a run that ended before its first stage leaves locks at most
    done = any(each.name[0] != "." for each in (folder / DONE).glob("*"))
    if not stored.is_file():
        if done:
            reason = f"holds a folder {DONE}/, a run's own, and no run: expected another folder"
            raise FolderTaken("hydra.run.dir", folder, reason)
        return False
    if _alike(stored.read_text(encoding="utf-8", errors="replace"), config):
        return True
    if read_state(folder)["finished"]:
        raise FolderTaken(
            "hydra.run.dir",
            folder,
            "holds a finished run of other options: expected another folder, or this one removed",
        )
    # hours of work may lie there
    if done:
        raise FolderTaken(
            "hydra.run.dir",
            folder,
            f"holds a stopped run of other options: go on with resume={folder}, "
            "take another folder, or remove it",
        )
    return False


def _alike(stored: str, config: str) -> bool:
    if stored == config:
        return True
    try:
        configs = [yaml.safe_load(text) for text in (stored, config)]
        for each in configs:
            del each["paths"]["cache_dir"]
    except (yaml.YAMLError, LookupError, TypeError):
        return False
    return configs[0] == configs[1]


def of_the_disk(error: OSError) -> bool:
    """Whether the disk, or what is allowed there, is the reason, and not a fault of this program.

    A folder that cannot be made under ``/proc`` is "No such file", as is a file that is missing.
    """
    if error.errno == errno.ENOENT:
        *_, last = traceback.walk_tb(error.__traceback__)
        return last[0].f_code.co_name in ("mkdir", "makedirs")
    return error.errno in _DISK


def not_written(error: OSError, folder: Path | None = None) -> UserError:
    """What the system says of a file, in one line that tells how to go on."""
    goes_on = f", then go on with resume={folder}" if folder and (folder / CONFIG).exists() else ""
    right = "a disk with room and a folder that can be written"
    if error.errno == errno.ENAMETOOLONG:
        right = "a shorter name"
    return UserError(
        "hydra.run.dir",
        error.filename or folder,
        f"{error.strerror}; expected {right}{goes_on}",
    )


def read_state(folder: Path) -> dict[str, Any]:
    """What the run's folder tells of it: ``finished``, ``loggers``, each one's id, and, once it has
    begun, ``arithmetic``, on what (``psvit.reuse.arithmetic``).

    Raises:
        UserError: the file is damaged.
    """
    state: dict[str, Any] = {"finished": False, "loggers": {}}
    path = folder / STATE
    if not path.exists():
        return state
    try:
        state |= read_json(path)
        named = (state["loggers"], state.get("arithmetic", {}))
        whole = isinstance(state["finished"], bool) and all(isinstance(x, dict) for x in named)
    except (ValueError, TypeError):  # no JSON, or no mapping
        whole = False
    if not whole:
        reason = "is damaged: remove it, and what is done is found by the stages' own files"
        raise UserError("resume", path, reason)
    return state


def finished(folder: Path) -> bool:
    """Whether a run in ``folder`` is finished, as far as its files can be read."""
    try:
        return read_state(folder)["finished"]
    except UserError:
        return False


def read_results(folder: Path) -> dict[str, Any]:
    """What ``results.json`` of a finished run holds.

    Raises:
        UserError: it is gone or damaged.
    """
    path = folder / "results.json"
    try:
        results = read_json(path)
        if results["rows"][-1]:
            return results
    except (OSError, ValueError, LookupError, TypeError):
        pass
    reason = f"the run is finished, but this cannot be read: remove {STATE} to make it again"
    raise UserError("resume", path, reason)


def write_state(folder: Path, **state: Any) -> None:
    """Note what ``read_state`` tells."""
    write_json(folder / STATE, {**read_state(folder), **state})
