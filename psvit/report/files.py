"""Reads the files of a run folder: they are the record that every report is made from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pandas.api.types import is_numeric_dtype

from psvit.channels import KINDS
from psvit.errors import UserError
from psvit.report.jobs import read_failure

SENSITIVITY_COLUMNS = [
    "group",
    "kind",
    "size",
    "ratio",
    "removed",
    "parameters",
    "memory_saving",
    "images",
    "drop",
    "drop_stderr",
    "loss",
]
UNIFORM_COLUMNS = [
    "ratio",
    "parameters",
    "memory_mb",
    "memory_saving",
    "images",
    "top1",
    "loss",
]
DIAGNOSTICS_COLUMNS = [
    "layer",
    "segment",
    "group",
    "rate_base",
    "rate",
    "drift",
    "silent_base",
    "silent",
    "saturated_base",
    "saturated",
    "channels_base",
    "channels",
]
OPERATIONS_COLUMNS = ["network", "layer", "input", "macs", "sops", "energy_mj"]
CLASSES_COLUMNS = ["network", "class", "images", "top1_base", "top1", "change", "change_stderr"]
# columns of these that hold names; the others hold numbers
NAMES = ("group", "kind", "layer", "segment", "input", "network", "class")
ROW_KEYS = ["name", "top1", "parameters", "memory_mb", "memory_saving"]
# A plan may hold a hundred thousand indices: the C parser reads them ten times faster.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunFiles:
    """What a run left in its folder; a part that was not run is None."""

    folder: Path
    # the resolved config
    config: dict[str, Any]
    # results.json
    results: dict[str, Any]
    # one row per (channel group, ratio), measured on the validation split
    sensitivity: pd.DataFrame | None
    # one row per ratio, measured on the validation split
    uniform: pd.DataFrame | None
    # every channel group: columns group, kind, size, kept (units), ratio (share removed)
    plan: pd.DataFrame | None
    # the policy that made the plan
    policy: str | None
    # one row per neuron layer, before and after the cut; see psvit.measure.firing.diagnose
    diagnostics: pd.DataFrame | None
    # one row per network and layer; see psvit.measure.operations
    operations: pd.DataFrame | None = None
    # one row per network and class; see psvit.measure.classes
    classes: pd.DataFrame | None = None

    @property
    def split(self) -> str:
        """The images that the networks of the table were measured on: test or validation."""
        return (self.results.get("run") or {}).get("split") or "test"

    def row(self, name: str) -> dict[str, Any] | None:
        """The network called ``name`` in the results, or None."""
        return next((row for row in self.results["rows"] if row["name"] == name), None)


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder.

    Raises:
        UserError: the folder is not that of a run, or a file in it cannot be read.
    """
    folder = Path(folder)
    if not (folder / "results.json").is_file():
        reason = "not a run folder: it holds no results.json"
        if problem := read_failure(folder):
            reason = f"its job failed, and left no results.json: {problem}"
        raise UserError("folder", folder, reason)
    results = _read(folder / "results.json", lambda path: json.loads(path.read_text()))
    _check_results(results, folder)
    sensitivity = read_sensitivity(folder, results)
    uniform = read_table(folder / "uniform.csv", UNIFORM_COLUMNS)
    plan = _read(folder / "plan.yaml", _load_mapping) or {}
    return RunFiles(
        folder=folder,
        config=_read(folder / "config.yaml", _load_mapping) or {},
        results=results,
        sensitivity=sensitivity,
        uniform=None if uniform is None else uniform.sort_values("ratio", ignore_index=True),
        plan=_plan_frame(folder, plan.get("groups") or {}, sensitivity),
        policy=plan.get("policy"),
        diagnostics=read_table(folder / "diagnostics.csv", DIAGNOSTICS_COLUMNS),
        operations=read_table(folder / "operations.csv", OPERATIONS_COLUMNS),
        classes=read_table(folder / "classes.csv", CLASSES_COLUMNS),
    )


def _check_results(results: Any, folder: Path) -> None:
    """Whether ``results.json`` has rows, and these what every report shows.

    Raises:
        UserError: it has not.
    """
    rows = results.get("rows") if isinstance(results, dict) else None
    if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError("folder", folder, "results.json holds no rows")
    for row in rows:
        missing = [key for key in ROW_KEYS if row.get(key) is None]
        if missing:
            raise UserError("folder", folder, f"a row of results.json lacks {', '.join(missing)}")


def standard_error(top1: Any, images: Any) -> Any:
    """Binomial standard error, in points, of a top-1 in percent measured on ``images`` images."""
    share = np.asarray(top1, dtype=float) / 100
    return 100 * np.sqrt(share * (1 - share) / np.asarray(images, dtype=float))


def _load_mapping(path: Path) -> dict[str, Any]:
    with path.open() as file:
        found = yaml.load(file, Loader=_YAML)
    if not isinstance(found, dict):
        raise ValueError("expected a mapping")
    return found


def _load_table(path: Path) -> pd.DataFrame:
    # a class may be called NA
    texts = dict.fromkeys(NAMES, str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def _read(path: Path, parse: Any) -> Any:
    """What ``parse`` makes of the file, or None without the file."""
    if not path.is_file():
        return None
    try:
        return parse(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError("folder", path.parent, f"{path.name} cannot be read ({reason})") from error


def read_sensitivity(folder: Path, results: dict[str, Any]) -> pd.DataFrame | None:
    """The rows of ``sensitivity.csv``, each once, or None where there are none.

    Args:
        folder: the run's.
        results: its ``results.json``.

    Raises:
        UserError: the file cannot be read, or its rows have no drop.
    """

    def with_drops(frame: pd.DataFrame) -> pd.DataFrame:
        """Earlier versions wrote the top-1 alone."""
        if "drop" in frame or not {"top1", "images"} <= set(frame):
            return frame
        base = results.get("validation") or {}
        # a drop is one of the same images
        if "top1" not in base or not frame["images"].dropna().eq(base.get("images")).all():
            reason = (
                "an earlier version made sensitivity.csv, on fewer images than the base network's "
                "top-1: expected the run made again"
            )
            raise UserError("folder", folder, reason)
        # of the differences image by image nothing was kept
        return frame.assign(drop=base["top1"] - frame["top1"], drop_stderr=0.0)

    frame = read_table(folder / "sensitivity.csv", SENSITIVITY_COLUMNS, with_drops)
    # a resumed analysis may have measured its last row twice
    return None if frame is None else frame.drop_duplicates(["group", "ratio"], keep="last")


def read_table(
    path: Path,
    columns: list[str],
    completed: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
) -> pd.DataFrame | None:
    """A CSV's rows that have all of ``columns``, or None where there is no file or no such row.

    Args:
        path: the file.
        columns: those of names are text, the others numbers.
        completed: adds columns that an earlier version did not write.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds words for numbers.
    """
    frame = _read(path, _load_table)
    if frame is None:
        return None
    frame = completed(frame)
    missing = [column for column in columns if column not in frame]
    if missing:
        reason = f"{path.name} lacks the columns {', '.join(missing)}"
        raise UserError("folder", path.parent, reason)
    for column in columns:
        if column not in NAMES and not is_numeric_dtype(frame[column]):
            raise UserError("folder", path.parent, f"{path.name}: {column} holds what is no number")
    # a run that was killed may have left half a row; a neuron layer of no group is a whole one
    frame = frame.fillna({"group": ""}).dropna(subset=columns)
    return frame if len(frame) else None


def _plan_frame(
    folder: Path, groups: dict[str, Any], sensitivity: pd.DataFrame | None
) -> pd.DataFrame | None:
    columns = ["group", "kind", "size", "kept", "ratio"]
    rows: dict[str, tuple[str, str, int, int, float]] = {}
    if groups and sensitivity is not None:
        # the network's order, and with the groups that the plan, not naming them, keeps whole
        for group in sensitivity.drop_duplicates("group").itertuples():
            rows[group.group] = (group.group, group.kind, group.size, group.size, 0.0)
    for name, entry in groups.items():
        try:
            size, kept = int(entry["size"]), len(entry["kept"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("folder", folder, f"plan.yaml: {name} has no size and kept") from error
        last = name.rsplit(".", 1)[-1]
        kind = rows[name][1] if name in rows else last if last in KINDS else "hidden"
        rows[name] = (name, kind, size, kept, 1 - kept / size)
    return pd.DataFrame(rows.values(), columns=columns) if rows else None
