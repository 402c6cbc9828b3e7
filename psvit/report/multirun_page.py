"""``report.html`` of many runs: their comparison, their sensitivities, and what failed."""

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from psvit.files import read_json, write_text
from psvit.report import comparison_text, style
from psvit.report.files import read_sensitivity
from psvit.report.html import from_markdown, render
from psvit.report.job_rows import DONE
from psvit.report.page import PAGE
from psvit.report.sensitivity import mended
from psvit.report.spread import spread

SPREAD = "sensitivity_spread"
# of networks as they are cut, and of what recovery leaves of them: never in one mean
SPREADS = {False: SPREAD, True: f"{SPREAD}_mended"}


def write_multirun_page(table: pd.DataFrame, long: pd.DataFrame, out: Path) -> None:
    """Write ``report.html``, and ``figures/sensitivity_spread*`` (PNG and SVG) where the runs have
    sensitivities, into the folder of a comparison whose other files are written.

    Args:
        table: of ``comparison_table``.
        long: of ``read_runs``.
        out: the comparison's folder.
    """
    with style.styled():
        # the files of a job that failed may be damaged
        done = long.loc[long["status"] == DONE, "folder"].unique()
        for recovered, rows in sensitivities(done).items():
            figure = spread(rows, recovered)
            if figure is not None:
                style.save(figure, out / "figures", SPREADS[recovered])
    write_text(out / PAGE, page(table, long, out))


def page(table: pd.DataFrame, long: pd.DataFrame, out: Path) -> str:
    """The page; links lead to the jobs' own pages, beside it in the folder."""
    figures = {path.stem: path for path in sorted((out / "figures").glob("*.svg"))}
    jobs = long.drop_duplicates("folder")
    done = jobs[jobs["status"] == DONE]
    return render(
        "multirun.html",
        title=f"{len(jobs)} runs",
        warnings=[line.strip("*") for line in comparison_text.silent_networks(long)],
        comparison=from_markdown(comparison_text.markdown(table, long)),
        figures=figures,
        fronts=[name for name in figures if name.startswith("pareto")],
        spreads=[name for name in SPREADS.values() if name in figures],
        missing=[(row.status, row.job) for row in table[table["status"] != DONE].itertuples()],
        jobs=[
            (_address(Path(folder) / PAGE, out), title)
            for folder, title in zip(done["folder"], done["job"], strict=True)
        ],
    )


def sensitivities(folders: Iterable[str]) -> dict[bool, pd.DataFrame]:
    """The sensitivities of finished runs that measured one, with a column ``run``.

    Runs that order channels by different importances cut others: they are never in one mean, and
    where there are several the runs of the most frequent one are taken.

    Returns:
        False: those of networks as cut, True: those of what recovery leaves; without what no run
        measured.
    """
    found: dict[bool, dict[str | None, dict[str, pd.DataFrame]]] = {}
    for folder in folders:
        # a job that failed has no results either
        if not (Path(folder) / "sensitivity.csv").is_file():
            continue
        results = read_json(Path(folder) / "results.json")
        rows = read_sensitivity(Path(folder), results)
        if rows is not None:
            importance = (results.get("run") or {}).get("importance")
            alike = found.setdefault(mended(results), {}).setdefault(importance, {})
            alike[folder] = rows
    most = {recovered: max(each.values(), key=len) for recovered, each in found.items()}
    return {
        recovered: pd.concat(tables, names=["run"]).reset_index(level="run").reset_index(drop=True)
        for recovered, tables in sorted(most.items())
    }


def _address(path: Path, out: Path) -> str | None:
    """Where a job's page is, seen from the comparison's; None where there is none."""
    return Path(os.path.relpath(path, out.resolve())).as_posix() if path.is_file() else None
