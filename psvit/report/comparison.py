"""Many runs in one table: policy × importance × recovery × target, over seeds."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from psvit.errors import UserError
from psvit.report.jobs import NONE, UNPRUNED, Job, find_jobs, note_settings, note_titles, read_job

# what two networks have in common that differ by the seed alone
KEY = ["model", "dataset", "target", "policy", "importance", "recovery", "rounds", "settings"]
LONG_COLUMNS = [
    *KEY,
    "seed",
    "target_value",
    "stage",
    "base",
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
# what a network takes: each a mean in the table, and in the long one beside the base network's
COSTS = [
    "memory_mb",
    "macs",
    "sops",
    "energy_mj",
    "firing_rate",
    "latency_ms",
    "speedup",
    "throughput",
]
TABLE_COLUMNS = [
    *KEY,
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
DONE, UNFINISHED, FAILED = "done", "unfinished", "failed"
FINE_TUNING = "fine-tuning"
# in the order of the reports
POLICIES = ("uniform", "global", "fine_grained", "prioritized", "budgeted")

_ROUND = re.compile(r", round \d+ of \d+")


def read_runs(folders: Iterable[str | Path]) -> pd.DataFrame:
    """The networks of many runs, with the columns ``LONG_COLUMNS`` and what else was measured.

    A row for each network but the base network, which has one only where a run prunes nothing.
    Top-1 is percent on the test set (the validation set where ``dataset`` says so), ``drop`` points
    below the same run's base network, ``memory_saving`` a share; ``base_macs`` and its like are the
    base network's, and ``base`` the options in which it differs from other jobs'. ``recovery`` is
    what was done to the pruned network: "none", a way of recovery, "fine-tuning", or both.
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
    rows = [row for job in jobs for row in _rows(job)]
    others = dict.fromkeys(key for row in rows for key in row if key not in LONG_COLUMNS)
    table = pd.DataFrame(rows, columns=[*LONG_COLUMNS, *others])
    return _once(table.astype(dict.fromkeys(NUMBERS, float)))


def comparison_table(long: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and sample standard deviations, with the columns ``TABLE_COLUMNS``.

    What one seed measured more than once counts as its mean. ``COSTS`` are means of what was
    measured of them; ``silent`` says whether the network of any seed is. Sorted by model, dataset,
    target and drop; the rows of failed and unfinished jobs, one for each, come last.
    """
    done = long[long["status"] == DONE]
    measured = ["top1", "drop", "memory_saving", "parameters", *COSTS, "silent"]
    done = done.reindex(columns=[*LONG_COLUMNS, *COSTS, "silent"])
    done[[*COSTS, "silent"]] = done[[*COSTS, "silent"]].astype(float)
    by_seed = done.groupby([*KEY, "target_value", "seed"], dropna=False)[measured].mean()
    groups = by_seed.groupby([*KEY, "target_value"], dropna=False)
    table = groups.mean()
    for name in measured[:3]:
        table[f"{name}_sd"] = groups[name].std(ddof=1)
    table["memory_saving_min"] = groups["memory_saving"].min()
    table["seeds"] = groups.size()
    table["silent"] = table["silent"] > 0
    table = table.reset_index().assign(status=DONE, job="")
    # a target that is no share of memory comes after those that are
    table = table.sort_values(
        ["model", "dataset", "target_value", "target", "drop", *KEY[3:]],
        key=lambda column: column.map(_natural) if column.name == "target" else column,
    )
    said = [*KEY, "target_value", "seeds", "status", "job"]
    rest = long[long["status"] != DONE].assign(seeds=0)[said]
    both = [part.reindex(columns=TABLE_COLUMNS) for part in (table, rest) if len(part)]
    return pd.concat(both, ignore_index=True) if both else pd.DataFrame(columns=TABLE_COLUMNS)


def without_training(table: pd.DataFrame) -> pd.Series:
    """Which rows of a table are of networks that were not trained on after they were pruned."""
    return ~table["recovery"].str.contains(FINE_TUNING, regex=False)


def best(table: pd.DataFrame) -> pd.Series:
    """Which rows have the lowest mean drop of their model, dataset and target.

    With and without training are two contests. A network that saves less than its target, for any
    seed, is in neither.
    """
    reached = ~(table["memory_saving_min"] < table["target_value"] - 1e-9)
    fair = table["drop"].where(reached & ~table["policy"].isin(UNPRUNED))
    contest = [table["model"], table["dataset"], table["target"], without_training(table)]
    return fair.notna() & (fair == fair.groupby(contest).transform("min"))


def _natural(target: str) -> str:
    """Sorts ``ratio 5 %`` before ``ratio 10 %``."""
    return re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):012.4f}", target)


def _rows(job: Job) -> list[dict[str, Any]]:
    """The long table's rows of one job."""
    target, value = job.target
    recovery = job.fact("recovery", NONE)
    # a uniform network is the same with and without another policy's beside it
    own_settings = {**job.rival, **job.settings} if job.policy == "uniform" else job.settings
    own = {
        "model": job.model,
        "dataset": job.measured_on,
        "target": target,
        "policy": job.policy,
        "importance": job.fact("importance", ""),
        "recovery": recovery,
        "rounds": job.fact("rounds", 1),
        "settings": _said(own_settings),
        "seed": job.seed,
        "target_value": value,
        "base": _said(job.base),
        "planned_for": recovery,
        "status": DONE,
        "job": job.title,
        "folder": str(job.folder),
    }
    if job.problem:
        return [{**own, "status": FAILED, "job": f"{job.title} ({job.problem})"}]
    measured = job.results["rows"]
    base = next((row for row in measured if row["name"] == "base"), None)
    trains = bool(job.section("finetune").get("epochs"))
    rows = []
    for row in measured:
        policy, stage = _policy(row), _stage(row)
        if stage == "base" or _ROUND.search(row["name"]):
            continue
        line = {**own, "policy": policy, "stage": stage, **_measures(row, base, job.results)}
        done = [] if stage == "pruned" or recovery == NONE else [recovery]
        if policy == "uniform" != job.policy:
            line |= {"settings": _said(job.rival), "planned_for": NONE, "rounds": 1}
            its_own = job.section("pruning").get("uniform_importance")
            line["importance"] = its_own or own["importance"]
        else:
            line |= _prediction(job.results, stage)
            if stage == "finetuned":
                done.append(FINE_TUNING)
            elif trains and line["rounds"] > 1:
                done.append(f"{FINE_TUNING} between rounds")
            else:
                line["settings"] = _said(own_settings, re.compile(r"(?!finetune\.)"))
        rows.append({**line, "recovery": " + ".join(done) or NONE})
    if job.policy in UNPRUNED and not rows and base is not None:
        rows.append(
            {**own, "stage": "base", "recovery": NONE, **_measures(base, base, job.results)}
        )
    if not _finished(job, rows, trains):
        rows.append({**own, "status": UNFINISHED})
    return rows


def _said(settings: dict[str, str], which: re.Pattern[str] = re.compile("")) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if which.match(key))


def _finished(job: Job, rows: list[dict[str, Any]], trains: bool) -> bool:
    """Whether the job measured the last network that its config asks for."""
    stages = {row["stage"] for row in rows if row["policy"] == job.policy}
    if job.policy in UNPRUNED:
        return bool(stages)
    wanted = "pruned" if job.fact("recovery", NONE) == NONE else "recovered"
    return ("finetuned" if trains else wanted) in stages


def _measures(
    row: dict[str, Any], base: dict[str, Any] | None, results: dict[str, Any]
) -> dict[str, Any]:
    """A row's numbers, its times, and how far it is below the base network."""
    numbers = _numbers(row, results)
    if base is None:
        return numbers
    kept = {*COSTS, "silent"}
    costs = {f"base_{key}": x for key, x in _numbers(base, results).items() if key in kept}
    return {**numbers, **costs, "base_top1": base["top1"], "drop": base["top1"] - row["top1"]}


def _numbers(row: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    found = {**row, **(results.get("timing") or {}).get(row["name"], {})}
    return {key: value for key, value in found.items() if isinstance(value, (int, float))}


def _prediction(results: dict[str, Any], stage: str) -> dict[str, Any]:
    """What the policy predicted the cut to cost, and what it did."""
    found = results.get("prediction") or {}
    after = {"pruned": "measured", "recovered": "measured_after_recovery"}.get(stage)
    if not found or after is None:
        return {}
    names = {"predicted_measure": "measure", "predicted": "predicted", "measured": after}
    return {column: found.get(key) for column, key in names.items()}


def _stage(row: dict[str, Any]) -> str:
    """The row's stage; where an older run does not say it, by its name."""
    name = row["name"]
    if row.get("stage"):
        return row["stage"]
    if name.endswith(" + fine-tuning"):
        return "finetuned"
    return "recovered" if name.endswith(" + recovery") else "base" if name == "base" else "pruned"


def _policy(row: dict[str, Any]) -> str:
    name = re.split(r"[ ,]", row["name"])[0]
    return row.get("policy") or (NONE if name == "base" else name)


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
