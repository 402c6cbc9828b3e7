"""Shows a run's files in its live Weights & Biases run."""

import logging
import re
from pathlib import Path
from typing import Any

from psvit.report import diagnostics
from psvit.report.files import RunFiles, read_run
from psvit.report.table import final_table

_log = logging.getLogger(__name__)
FINE_TUNED = " + fine-tuning"
SUMMARY = ("top1", "drop", "parameters", "memory_mb", "memory_saving")


def log_run(run: Any, folder: str | Path) -> None:
    """Log tables, charts, figures, summary values and networks of a run folder.

    Everything shown is in a file of the folder, so ``write_report`` comes first. Whatever W&B
    cannot do is said in one line and never fails the run.

    Args:
        run: a live ``wandb`` run, online or offline.
        folder: the run folder.
    """
    try:
        _log_files(run, read_run(folder))
    except Exception as error:  # the results are on disk; a dashboard is not worth a run
        reason = " ".join(str(error).split()) or type(error).__name__
        _log.warning("W&B shows only a part of this run: %s", reason)


def summary(run: RunFiles) -> dict[str, float]:
    """What a dashboard or a sweep sorts by: ``final/top1``, ``pruned/memory_saving`` and so on.

    ``final`` is the last network of the table, ``pruned`` the same before fine-tuning,
    ``unpruned`` the base network (``base/…`` are its training curves), ``uniform`` the rival.
    Top-1 is percent on the test set, drop is points, memory saving is a fraction.
    """
    base = run.row("base")
    values = {}
    for prefix, row in _stages(run).items():
        drop = {} if base is None else {"drop": base["top1"] - row["top1"]}
        for key, value in {**row, **drop}.items():
            if key in SUMMARY and value is not None:
                values[f"{prefix}/{key}"] = value
    return values


def _stages(run: RunFiles) -> dict[str, dict[str, Any]]:
    """The rows of the results by the name of their stage."""
    final = run.results["rows"][-1]
    stages = {"unpruned": run.row("base"), "uniform": run.row("uniform"), "final": final}
    if final["name"] != "base":
        stages["pruned"] = run.row(final["name"].removesuffix(FINE_TUNED))
    return {stage: row for stage, row in stages.items() if row is not None}


def _log_files(run: Any, files: RunFiles) -> None:
    import wandb

    run.config.update(files.config, allow_val_change=True)
    final = wandb.Table(dataframe=final_table(files))
    logged: dict[str, Any] = {
        "final/table": final,
        "final/top1_against_memory": wandb.plot.scatter(
            final,
            "memory_saving_percent",
            "top1",
            title="Networks: test top-1 (%), memory saving (%)",
        ),
    }
    if files.uniform is not None:
        percent = 100 * files.uniform["memory_saving"]
        table = wandb.Table(dataframe=files.uniform.assign(memory_saving_percent=percent))
        logged["uniform/table"] = table
        logged["uniform/top1_against_memory"] = wandb.plot.line(
            table,
            "memory_saving_percent",
            "top1",
            title="Uniform pruning: validation top-1 (%), memory saving (%)",
        )
    if files.sensitivity is not None:
        table = wandb.Table(dataframe=files.sensitivity)
        logged["sensitivity/table"] = table
        logged["sensitivity/top1_against_ratio"] = wandb.plot.line(
            table, "ratio", "top1", stroke="group", title="Sensitivity: validation top-1 (%), ratio"
        )
    if files.plan is not None:
        logged["plan/table"] = wandb.Table(dataframe=files.plan)
    if files.diagnostics is not None:
        logged["firing/table"] = wandb.Table(dataframe=files.diagnostics)
    for picture in sorted((files.folder / "figures").glob("*.png")):
        logged[f"figures/{picture.stem}"] = wandb.Image(str(picture))
    run.log(logged)
    run.summary.update(summary(files) | diagnostics.summary(files))
    _log_networks(run, files)


def _log_networks(run: Any, files: RunFiles) -> None:
    """The pruned and the fine-tuned network as artifacts, each with its own figures."""
    import wandb

    stages = _stages(files)
    name = files.results.get("run", {}).get("name") or run.id
    for stage, row in (("pruned", stages.get("pruned")), ("finetuned", stages.get("final"))):
        network = files.folder / stage
        if row is None or not (network / "model.safetensors").is_file():
            continue
        metadata = {key: value for key, value in row.items() if key != "published"}
        artifact = wandb.Artifact(
            re.sub(r"[^\w.-]+", "-", f"{name}-{stage}"), type="model", metadata=metadata
        )
        for file in sorted(network.iterdir()):
            # immutable: W&B reads it where it is and keeps no copy of the weights elsewhere
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", stage])
