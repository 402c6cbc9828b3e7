"""Folders of results that are made once: ``<root>/<stage>/<hash of the key>/``."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from psvit.cache.keys import canonical, key_hash
from psvit.errors import UserError
from psvit.files import digest, read_json, write_json, write_text

# the cache's own files in an entry; ``make`` must use other names
KEY, MANIFEST, USES = "key.yaml", "manifest.json", "uses.txt"
PARTIAL = ".partial"
LOCKS = ".locks"
# days after which the work of a job that never came back is given up
STALE_DAYS = 30
# how often a waiting job looks again, in seconds
POLL = 0.2
WAITING_FOR = {
    "base": "trains the same base network",
    "sensitivity": "measures the same sensitivity table",
}

_log = logging.getLogger(__name__)


class StageCache:
    """Folders of finished work, shared by jobs that run at the same time or later.

    Args:
        root: the cache; made where it is missing.
        option: what the user sets ``root`` by, for messages.
        level: of the line that says what is kept, for work of at least a second.
    """

    def __init__(self, root: Path, option: str = "paths.cache_dir", level: int = logging.INFO):
        self.root, self.option, self.level = Path(root), option, level

    def get(
        self,
        stage: str,
        key: Mapping[str, Any],
        make: Callable[[Path], None],
    ) -> Path:
        """The folder with what ``make`` writes for ``key``: an earlier one, or a new one.

        Jobs that ask for the same entry wait for the one that makes it. A job that is killed frees
        the entry, and the next one finds what it left.

        Args:
            stage: the folder of entries of this kind, such as ``base``.
            key: all that the result depends on, as ``canonical`` takes it: config values, the
                ``data_fingerprint``, the ``code_version``.
            make: writes the result into the folder it is given, which holds what an unfinished
                call for the same key left there.

        Returns:
            The entry. It is shared: copy what you want to change.

        Raises:
            UserError: the cache cannot be written.
            TypeError: the key holds what has no plain form.
        """
        entry = self.root / stage / key_hash(key)
        partial = entry.with_name(entry.name + PARTIAL)
        with self._alone(stage, entry):
            if self._whole(entry):
                with self._written(), (entry / USES).open("a") as uses:
                    uses.write(_now() + "\n")
                return entry
            with self._written():
                resumed = partial.exists()
                partial.mkdir(exist_ok=True)
                about = {"stage": stage, "key": canonical(key), "date": _now()}
                write_text(partial / KEY, yaml.safe_dump(about, sort_keys=False))
            start = time.perf_counter()
            make(partial)
            about |= {
                "date": _now(),
                "seconds": round(time.perf_counter() - start, 2),
                # then the seconds are those of the last attempt alone
                "resumed": resumed,
            }
            with self._written():
                write_text(partial / KEY, yaml.safe_dump(about, sort_keys=False))
                write_json(partial / MANIFEST, _manifest(partial))
                partial.rename(entry)
        # what is quickly made again is not worth a line
        level = self.level if about["seconds"] >= 1 else logging.DEBUG
        _log.log(level, "%s took %.1f s and is kept in %s", stage, about["seconds"], entry)
        self._give_up_stale(stage)
        return entry

    @contextmanager
    def _alone(self, stage: str, entry: Path) -> Iterator[None]:
        """Holds the entry's lock; the system frees it when its holder dies."""
        with self._written():
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock = lock_of(self.root, stage, entry.name)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                work = WAITING_FOR.get(stage, f"makes the same {stage}")
                _log.info("waiting for another job that %s (%s)", work, entry)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _whole(self, entry: Path) -> bool:
        """Whether the entry is there and as it was made; a damaged one is removed."""
        if not entry.exists():
            return False
        with self._written():
            reason = damage(entry)
            if reason is None:
                about = read_about(entry)
                _log.info(
                    "%s of %s, which took %.1f s, taken from %s",
                    *(about["stage"], about["date"], about["seconds"], entry),
                )
                return True
            _log.warning("%s is damaged (%s) and is made again", entry, reason)
            shutil.rmtree(entry)
        return False

    def _give_up_stale(self, stage: str) -> None:
        for partial in (self.root / stage).glob(f"*{PARTIAL}"):
            with if_free(self.root, partial) as free:
                if free and partial.exists() and age_days(partial) > STALE_DAYS:
                    _log.info("%s, unfinished for %d days, is removed", partial, STALE_DAYS)
                    shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                self.option,
                self.root,
                f"cannot be written ({error.strerror or error}); expected a folder that can, or "
                "null for no cache",
            ) from error


def lock_of(root: Path, stage: str, name: str) -> FileLock:
    """The lock of an entry and of the unfinished work for it. Its empty file stays."""
    folder = root / LOCKS
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{stage}-{name}.lock", poll_interval=POLL)


@contextmanager
def if_free(root: Path, folder: Path) -> Iterator[bool]:
    """Whether no job works on the entry of ``folder``; if so, none begins to meanwhile."""
    lock = lock_of(root, folder.parent.name, folder.name.removesuffix(PARTIAL))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def damage(entry: Path) -> str | None:
    """What differs between an entry and its manifest; None if nothing does.

    Files that were added, which no reader looks for, do not count.

    Raises:
        OSError: if a file is there and cannot be read.
    """
    try:
        for name, expected in read_json(entry / MANIFEST).items():
            path = entry / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} does not have its {expected['bytes']} bytes"
            if digest(path) != expected["sha256"]:
                return f"{name} has changed"
        read_about(entry)["seconds"]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return f"{MANIFEST} cannot be read"
    return None


def read_about(folder: Path) -> dict[str, Any]:
    """What ``key.yaml`` tells.

    Returns:
        ``stage``, ``key`` and ``date`` (UTC, ISO 8601); of a finished entry also ``seconds`` and
        ``resumed``, which says that the seconds are those of the last attempt alone.
    """
    return yaml.safe_load((folder / KEY).read_text())


def age_days(folder: Path) -> float:
    """Days since something in ``folder`` changed."""
    newest = max((status.st_mtime for status in statuses(folder)), default=time.time())
    return (time.time() - newest) / 86400


def statuses(folder: Path) -> Iterator[os.stat_result]:
    """Of a folder and all that is in it, while others may write and remove there."""
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            with suppress(FileNotFoundError):
                yield os.stat(path)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The name, size and SHA-256 of each file; a file that a power cut tore shows by them."""
    own = (folder / MANIFEST, folder / USES)
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": digest(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in own
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
