"""What a cache holds, for those who look at it and clear it."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from psvit.cache.keys import HASH_DIGITS
from psvit.cache.store import PARTIAL, USES, age_days, if_free, read_about, statuses

_NAME = re.compile(rf"[0-9a-f]{{{HASH_DIGITS}}}({re.escape(PARTIAL)})?")
_HASH = re.compile("[0-9a-f]{32,}")
SHORT = 8
# of a key, how many values are shown
SHOWN = 6


@dataclass(frozen=True)
class Entry:
    """A finished result, or the unfinished work for one.

    Attributes:
        folder: where it lies, ``<root>/<stage>/<hash>`` or ``<hash>.partial``.
        bytes: the size of its files.
        key: what it depends on.
        made: when it was finished, or begun.
        seconds: what making it took; None if it is unfinished.
        resumed: the seconds are those of the last attempt alone.
        uses: when jobs took it in place of making it again, oldest first.

    What a damaged file does not tell is empty or None.
    """

    folder: Path
    bytes: int
    key: dict[str, Any] = field(default_factory=dict)
    made: datetime | None = None
    seconds: float | None = None
    resumed: bool = False
    uses: tuple[datetime, ...] = ()

    @property
    def stage(self) -> str:
        """What it holds the result of: ``base``, ``uniform`` or ``sensitivity``."""
        return self.folder.parent.name

    @property
    def short(self) -> str:
        """The first ``SHORT`` letters of its key."""
        return self.folder.name[:SHORT]

    @property
    def unfinished(self) -> bool:
        """Whether the work was stopped before its end."""
        return self.folder.name.endswith(PARTIAL)

    @property
    def seconds_saved(self) -> float:
        """Seconds that its uses would have taken."""
        return (self.seconds or 0.0) * len(self.uses)

    @property
    def idle_days(self) -> float:
        """Days since it was made, changed or used."""
        return age_days(self.folder)


def read_entries(root: Path) -> list[Entry]:
    """The entries of a cache, by stage and date; folders of any other name are passed over."""
    found = [folder for folder in root.glob("*/*") if _NAME.fullmatch(folder.name)]
    # a folder may have got its final name since it was listed
    entries = [_read(folder) for folder in found if folder.is_dir()]
    return sorted(entries, key=lambda entry: (entry.stage, entry.made is None, entry.made))


def _read(folder: Path) -> Entry:
    size = sum(status.st_size for status in statuses(folder) if S_ISREG(status.st_mode))
    try:
        about, uses = read_about(folder), folder / USES
        lines = uses.read_text().split() if uses.exists() else []
        return Entry(
            folder,
            size,
            about["key"],
            datetime.fromisoformat(about["date"]),
            about.get("seconds"),
            about.get("resumed", False),
            tuple(datetime.fromisoformat(line) for line in lines),
        )
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return Entry(folder, size)


def remove(root: Path, entry: Entry) -> bool:
    """Delete an entry unless a job is working on it; returns whether it is gone."""
    with if_free(root, entry.folder) as free:
        if free and entry.folder.exists():
            shutil.rmtree(entry.folder)
    return free


def is_busy(root: Path, entry: Entry) -> bool:
    """Whether a job is working on the entry now; in a cache that is read-only, none is."""
    try:
        with if_free(root, entry.folder) as free:
            return not free
    except OSError:
        return False


def main_values(entry: Entry, entries: Sequence[Entry]) -> str:
    """The names and seeds of an entry's key, then what tells it from others of its stage."""
    values = _leaves(entry)
    others = [_leaves(other) for other in entries if other.stage == entry.stage]
    names = [path for path in values if path.rpartition(".")[2] in ("name", "seed")]
    differing = [
        path for path in values if any(other.get(path) != values[path] for other in others)
    ]
    chosen = list(dict.fromkeys(names + differing))[:SHOWN]
    # `model.name` says enough of `config.model.name`
    return " ".join(f"{'.'.join(path.split('.')[-2:])}={_brief(values[path])}" for path in chosen)


def _leaves(entry: Entry) -> dict[str, Any]:
    return dict(_flat(entry.key, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, entry in value.items():
        yield from _flat(entry, f"{path}.{name}" if path else name)


def _brief(value: Any) -> str:
    text = str(value).replace(" ", "")
    return text[:SHORT] if _HASH.fullmatch(text) else text
