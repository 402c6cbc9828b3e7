"""The networks that one job measured, a row of the comparison's long table for each."""

import re
from typing import Any

from psvit.report.jobs import NONE, UNPRUNED, Job

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
DONE, UNFINISHED, FAILED = "done", "unfinished", "failed"
FINE_TUNING = "fine-tuning"

# options that shape a network, and those of measuring it
_SHAPING, _MEASURING = re.compile(r"(?!measure\.)"), re.compile(r"measure\.")
_ROUND = re.compile(r", round \d+ of \d+")


def job_rows(job: Job) -> list[dict[str, Any]]:
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
        "base": _said(job.base, _SHAPING),
        "measure": _said(job.base, _MEASURING),
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
