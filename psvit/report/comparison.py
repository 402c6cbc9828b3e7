"""Many runs in one table: policy × importance × recovery × target, over seeds."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from psvit.errors import UserError
from psvit.report.job_rows import COSTS, DONE, FINE_TUNING, job_rows
from psvit.report.jobs import NONE, UNPRUNED, find_jobs, note_settings, note_titles, read_job

# what base networks have in common that differ by the seed alone
BASES = ["model", "dataset", "base"]
# likewise of the others
KEY = ["model", "dataset", "target", "policy", "importance", "recovery", "rounds", "settings"]
LONG_COLUMNS = [
    *KEY,
    "seed",
    "target_value",
    "stage",
    "base",
    "measure",
    "base_top1",
    "top1",
    "drop",
    "memory_saving",
    "parameters",
    "predicted_measure",
    "predicted",
    "measured",
    "planned_for",
    "status",
    "job",
    "folder",
]
NUMBERS = [
    "target_value",
    "base_top1",
    "top1",
    "drop",
    "memory_saving",
    "parameters",
    "predicted",
    "measured",
]
TABLE_COLUMNS = [
    *KEY,
    "base",
    "target_value",
    "seeds",
    "top1",
    "top1_sd",
    "drop",
    "drop_sd",
    "memory_saving",
    "memory_saving_sd",
    "memory_saving_min",
    "parameters",
    *COSTS,
    "silent",
    "status",
    "job",
]
# in the order of the reports
POLICIES = ("uniform", "global", "fine_grained", "prioritized", "budgeted")


def read_runs(folders: Iterable[str | Path]) -> pd.DataFrame:
    """The networks of many runs, with the columns ``LONG_COLUMNS`` and what else was measured.

    A row for each network but the base network, which has one only where a run prunes nothing.
    Top-1 is percent on the test set (the validation set where ``dataset`` says so), ``drop`` points
    below the same run's base network, ``memory_saving`` a share; ``base_macs`` and its like are the
    base network's, ``base`` the options in which it differs from other jobs', and ``measure`` those
    of measuring it. ``recovery`` is what was done to the pruned network: "none", a way of recovery,
    "fine-tuning", or both.
    ``settings`` are further options in which the runs differ.
    Networks after a round that is not the last are left out, and one that several runs measured
    alike, as the uniform rival, is counted once. A job without results has a row of status
    "failed", one without its last network a row of status "unfinished"; ``job`` holds the
    overrides that other jobs do not share.

    Args:
        folders: run folders, or folders that hold some, as a multirun's.

    Raises:
        UserError: there is no run in a folder.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        found = find_jobs(folder)
        if not found:
            raise UserError("folder", folder, "not a run folder: it holds no results.json")
        paths.update(dict.fromkeys(path.resolve() for path in found))
    jobs = [read_job(path) for path in paths]
    # what only a failed job was to do tells no networks apart
    note_settings([job for job in jobs if not job.problem])
    note_titles(jobs)
    rows = [row for job in jobs for row in job_rows(job)]
    others = dict.fromkeys(key for row in rows for key in row if key not in LONG_COLUMNS)
    table = pd.DataFrame(rows, columns=[*LONG_COLUMNS, *others])
    return _once(table.astype(dict.fromkeys(NUMBERS, float)))


def comparison_table(long: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and sample standard deviations, with the columns ``TABLE_COLUMNS``.

    What one seed measured more than once counts as its mean. ``COSTS`` are means of what was
    measured of them; ``silent`` says whether the network of any seed is, ``base`` what the base
    network of the first seed has of its own. Sorted by model, dataset, target and drop; the rows of
    failed and unfinished jobs, one for each, come last.
    """
    done = long[long["status"] == DONE]
    measured = ["top1", "drop", "memory_saving", "parameters", *COSTS, "silent"]
    done = done.reindex(columns=[*LONG_COLUMNS, *COSTS, "silent"])
    done[[*COSTS, "silent"]] = done[[*COSTS, "silent"]].astype(float)
    measurements = done.groupby([*KEY, "target_value", "seed"], dropna=False)
    by_seed = measurements[measured].mean().assign(base=measurements["base"].first())
    groups = by_seed.groupby([*KEY, "target_value"], dropna=False)
    table = groups[measured].mean()
    for name in measured[:3]:
        table[f"{name}_sd"] = groups[name].std(ddof=1)
    table["memory_saving_min"] = groups["memory_saving"].min()
    table["seeds"] = groups.size()
    table["base"] = groups["base"].first()
    table["silent"] = table["silent"] > 0
    table = table.reset_index().assign(status=DONE, job="")
    # a target that is no share of memory comes after those that are
    table = table.sort_values(
        ["model", "dataset", "target_value", "target", "drop", *KEY[3:]],
        key=lambda column: column.map(_natural) if column.name == "target" else column,
    )
    said = [*KEY, "base", "target_value", "seeds", "status", "job"]
    rest = long[long["status"] != DONE].assign(seeds=0)[said]
    both = [part.reindex(columns=TABLE_COLUMNS) for part in (table, rest) if len(part)]
    return pd.concat(both, ignore_index=True) if both else pd.DataFrame(columns=TABLE_COLUMNS)


def without_training(table: pd.DataFrame) -> pd.Series:
    """Which rows of a table are of networks that were not trained on after they were pruned."""
    return ~table["recovery"].str.contains(FINE_TUNING, regex=False)


def best(table: pd.DataFrame) -> pd.Series:
    """Which rows have the lowest mean drop of their base network and target.

    With and without training are two contests. A network that saves less than its target, for any
    seed, is in neither.
    """
    reached = ~(table["memory_saving_min"] < table["target_value"] - 1e-9)
    fair = table["drop"].where(reached & ~table["policy"].isin(UNPRUNED))
    contest = [*(table[name] for name in (*BASES, "target")), without_training(table)]
    return fair.notna() & (fair == fair.groupby(contest).transform("min"))


def _natural(target: str) -> str:
    """Sorts ``ratio 5 %`` before ``ratio 10 %``."""
    return re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):012.4f}", target)


def _once(table: pd.DataFrame) -> pd.DataFrame:
    """Each network once; of a plan made for a recovery, said where it is another than without."""
    values = [*KEY, "seed", "base_top1", "top1", "memory_saving", "parameters"]
    kept = table["status"] != DONE
    order = (table["planned_for"] != NONE).sort_values(kind="stable").index
    kept |= ~table.loc[order].duplicated(values).reindex(table.index)
    table = table[kept].reset_index(drop=True)
    pruned = table[(table["stage"] == "pruned") & (table["status"] == DONE)]
    plans = pruned.groupby([*KEY, "seed"], dropna=False)["planned_for"].transform("nunique")
    clash = (plans > 1).groupby([pruned[name] for name in KEY], dropna=False).transform("any")
    for index in pruned.index[clash & (pruned["planned_for"] != NONE)]:
        said = f"planned for recovery={table.at[index, 'planned_for']}"
        table.at[index, "settings"] = ", ".join(filter(None, [table.at[index, "settings"], said]))
    return table
