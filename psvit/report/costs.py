"""What the networks of many runs take: operations, energy, spikes and time."""

import math
from dataclasses import replace

import pandas as pd

from psvit.report.job_rows import COSTS, DONE
from psvit.report.jobs import UNPRUNED
from psvit.report.table import COLUMNS, OF_SPIKES, SILENT, Column

# as in the table of a run, but that shares are kept as shares
_SHARES = {"firing_rate": replace(COLUMNS["firing_rate_percent"], unit=0.01)}
BASE = "base"


def cost_cells(
    table: pd.DataFrame, long: pd.DataFrame, names: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: the base network of each model and dataset, then the others in order.

    Args:
        table: of ``comparison_table``.
        long: of ``read_runs``.
        names: the columns that say which network it is.

    Returns:
        No rows where nothing but sizes was measured.
    """
    done = table[table["status"] == DONE]
    shown = [name for name in COSTS if done[name].notna().any()]
    if set(shown) <= {"memory_mb"}:
        return [], []
    measured = long[long["status"] == DONE]
    rows = []
    for (model, dataset), networks in done.groupby(["model", "dataset"], sort=False):
        theirs = measured[(measured["model"] == model) & (measured["dataset"] == dataset)]
        for made, of_one in theirs.groupby(["base", "measure"], sort=False):
            said = {**dict.fromkeys(names, ""), "model": model, "dataset": dataset}
            said |= {
                "policy": BASE,
                "settings": ", ".join(filter(None, made)),
                SILENT: _any(of_one, "base_silent"),
            }
            rows.append(_base(of_one) | said)
        rows += networks[~networks["policy"].isin(UNPRUNED)].to_dict("records")
    # as in the whole table, behind the figures
    last = ["settings"] if any(row["settings"] for row in rows) else []
    heading = [*names, *(_column(name).heading for name in shown), *last]
    return heading, [_cells(row, names, shown) + [row[name] for name in last] for row in rows]


def _any(long: pd.DataFrame, name: str) -> bool:
    """Whether a figure that older runs lack is true of any row."""
    return name in long and bool(long[name].eq(True).any())


def _column(name: str) -> Column:
    return _SHARES.get(name) or COLUMNS[name]


def _base(long: pd.DataFrame) -> dict[str, float]:
    """The means over the seeds of the base networks' costs."""
    columns = {f"base_{name}": name for name in COSTS if f"base_{name}" in long}
    by_seed = long.groupby("seed", dropna=False)[list(columns)].mean()
    return by_seed.mean().rename(columns).to_dict()


def _cells(row: dict, names: list[str], shown: list[str]) -> list[str]:
    figures = [
        SILENT if row[SILENT] and name in OF_SPIKES else _column(name).text(row.get(name, math.nan))
        for name in shown
    ]
    return [*(str(row[name]) for name in names), *figures]
