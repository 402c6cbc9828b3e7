"""Shows, checks and clears the cache of base networks, sensitivity tables and other results.

Without a command, lists what the cache holds.
"""

import argparse
import sys
from datetime import datetime, timedelta
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from psvit.cache.entries import Entry, is_busy, main_values, read_entries, remove
from psvit.cache.store import damage
from psvit.errors import UserError, traceback_wanted

COLUMNS = ("stage", "key", "values", "size", "made", "took", "used", "last used")
RIGHT = ("size", "took", "used")
# columns of a terminal that hold the table
WIDE = 100


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 1 if damage was found, 2 if asked wrongly."""
    options = _parser().parse_args(arguments)
    try:
        root = Path(options.root)
        if not root.is_dir():
            raise UserError("--root", root, "no such folder; a run that caches something makes it")
        if options.command == "clear":
            return _clear(root, options.stage, options.older_than)
        return _verify(root) if options.command == "verify" else _list(root)
    except (UserError, OSError) as error:
        if traceback_wanted():
            raise
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m psvit.cache", description=__doc__)
    parser.add_argument("--root", default="outputs/cache", help="the cache (%(default)s)")
    # taken after the command too; SUPPRESS leaves what was said before it
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", default=argparse.SUPPRESS, help="the cache")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", parents=[root], help="what the cache holds")
    clear = commands.add_parser(
        "clear", parents=[root], help="remove entries and unfinished work, but what jobs work on"
    )
    clear.add_argument("--stage", help="of this stage alone")
    clear.add_argument(
        "--older-than", type=float, metavar="DAYS", help="neither made nor used for so many days"
    )
    commands.add_parser(
        "verify", parents=[root], help="compare every file with its hash; 1 if one differs"
    )
    return parser


def _list(root: Path) -> int:
    entries = read_entries(root)
    rows = [_row(root, entry, entries) for entry in entries]
    console = Console()
    if console.is_terminal and console.width >= WIDE and rows:
        table = Table(box=SIMPLE_HEAD)
        for column in COLUMNS:
            table.add_column(
                column,
                justify="right" if column in RIGHT else "left",
                overflow="fold",
                # the values alone may break into lines
                no_wrap=column != "values",
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for row in rows:
            print("  ".join(row))
    size = decimal(sum(entry.bytes for entry in entries))
    saved = _time(sum(entry.seconds_saved for entry in entries))
    print(f"{_count(entries)} in {root}, {size}; what was used again saved {saved}")
    return 0


def _row(root: Path, entry: Entry, entries: list[Entry]) -> tuple[str, ...]:
    if entry.unfinished:
        took, used = ("being made" if is_busy(root, entry) else "unfinished"), "–"
    else:
        took = (">" if entry.resumed else "") + _time(entry.seconds or 0)
        used = f"{len(entry.uses)}×"
    return (
        entry.stage,
        entry.short,
        main_values(entry, entries),
        decimal(entry.bytes),
        _date(entry.made),
        took,
        used,
        _date(entry.uses[-1] if entry.uses else None),
    )


def _clear(root: Path, stage: str | None, older_than: float | None) -> int:
    entries = read_entries(root)
    if older_than is not None and not older_than >= 0:
        raise UserError("--older-than", older_than, "a number of days, at least 0")
    stages = sorted({entry.stage for entry in entries})
    if stage is not None and stage not in stages:
        raise UserError("--stage", stage, f"the cache holds {', '.join(stages) or 'nothing'}")
    chosen = [
        entry
        for entry in entries
        if stage in (None, entry.stage) and (older_than is None or entry.idle_days > older_than)
    ]
    gone = []
    for entry in chosen:
        if remove(root, entry):
            gone.append(entry)
        else:
            print(f"kept {entry.stage}/{entry.short}: a job is working on it")
    print(f"removed {_count(gone)}, {decimal(sum(entry.bytes for entry in gone))}")
    return 0


def _verify(root: Path) -> int:
    entries = [entry for entry in read_entries(root) if not entry.unfinished]
    damaged = 0
    for entry in entries:
        if (reason := damage(entry.folder)) is not None:
            damaged += 1
            print(f"{entry.stage}/{entry.short} is damaged: {reason}")
    print(f"{_count(entries)} checked, {damaged} damaged")
    return 1 if damaged else 0


def _count(entries: list[Entry]) -> str:
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"


def _date(moment: datetime | None) -> str:
    return "–" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(main())
