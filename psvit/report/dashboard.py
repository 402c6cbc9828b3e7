"""Shows a run's files in its live Weights & Biases run."""

import logging
import re
from pathlib import Path
from typing import Any

from psvit.report import diagnostics
from psvit.report.files import RunFiles, read_run
from psvit.report.page import PAGE
from psvit.report.table import final_table

_log = logging.getLogger(__name__)
MENDED = re.compile(r" \+ (recovery|fine-tuning)$")
# each made from the one before it that the run has; the folders that hold them
NETWORKS = ("base", "pruned", "recovered", "finetuned")
CURVES = ("loss", "top1", "val_loss", "val_top1", "lr")


def define_curves(run: Any) -> None:
    """Draw the curves of each training by its own epochs; the best epoch goes to the summary.

    Lightning, which draws all by the step, counts epochs and steps of each training from 0.

    Args:
        run: a live ``wandb`` run, before anything is logged.
    """
    for stage in ("base", "finetune"):
        for name in CURVES:
            best = {"summary": "max,last"} if name.endswith("top1") else {}
            run.define_metric(f"{stage}/{name}", step_metric="epoch", **best)


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

    ``final`` is the last network of the table, ``pruned`` the same as it was cut, ``recovered`` the
    same before fine-tuning, ``unpruned`` the base network (``base/…`` are its training curves),
    ``uniform`` the rival. All numbers of a network's row are there, in the units of
    ``results.json``, and its latency where it was timed; ``drop`` is points below the base network.
    """
    base = run.row("base")
    values: dict[str, float] = {}
    for prefix, row in _stages(run).items():
        if prefix == "base":
            prefix = "unpruned"
        drop = {} if base is None else {"drop": base["top1"] - row["top1"]}
        timing = (run.results.get("timing") or {}).get(row["name"]) or {}
        for key, value in {**row, **drop, **timing}.items():
            if isinstance(value, (int, float)):
                values[f"{prefix}/{key}"] = float(value) if isinstance(value, bool) else value
    return values


def _stages(run: RunFiles) -> dict[str, dict[str, Any]]:
    """The rows of the results by what their networks are."""
    final = run.results["rows"][-1]
    name = MENDED.sub("", final["name"])
    stages = {"base": run.row("base"), "uniform": run.row("uniform"), "final": final}
    if name != "base":
        stages |= {"pruned": run.row(name), "recovered": run.row(f"{name} + recovery")}
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
            title=f"Networks: {files.split} top-1 (%), memory saving (%)",
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
        logged["sensitivity/drop_against_ratio"] = wandb.plot.line(
            table,
            "ratio",
            "drop",
            stroke="group",
            title="Sensitivity: drop in validation top-1 (points), ratio",
        )
        logged["sensitivity/drop_against_memory"] = wandb.plot.scatter(
            wandb.Table(
                dataframe=files.sensitivity.assign(percent=100 * files.sensitivity["memory_saving"])
            ),
            "percent",
            "drop",
            title="Each group alone: drop in validation top-1 (points), memory saving (%)",
        )
    if files.operations is not None:
        logged["operations/table"] = wandb.Table(dataframe=files.operations)
        last = files.operations[files.operations["network"] == files.operations["network"].iloc[-1]]
        logged["operations/energy"] = wandb.plot.bar(
            wandb.Table(dataframe=last[["layer", "energy_mj"]]),
            "layer",
            "energy_mj",
            title="Energy of one image by layer (mJ), last network",
        )
    if files.classes is not None:
        logged["classes/table"] = wandb.Table(dataframe=files.classes)
    if files.plan is not None:
        logged["plan/table"] = wandb.Table(dataframe=files.plan)
    if files.diagnostics is not None:
        logged["firing/table"] = wandb.Table(dataframe=files.diagnostics)
    if (files.folder / PAGE).is_file():
        logged["report"] = wandb.Html(str(files.folder / PAGE), inject=False)
    for picture in sorted((files.folder / "figures").glob("*.png")):
        logged[f"figures/{picture.stem}"] = wandb.Image(str(picture))
    run.log(logged)
    run.summary.update(summary(files) | diagnostics.summary(files))
    _log_networks(run, files)


def _log_networks(run: Any, files: RunFiles) -> None:
    """The networks as artifacts, each with its own figures and the one that it was made from.

    A base network has one name for all runs of its model and dataset, so that the runs of a
    multirun that share it hang on one artifact.
    """
    import wandb

    about, stages = files.results.get("run", {}), _stages(files)
    if MENDED.sub("", stages["final"]["name"]) != stages["final"]["name"]:
        stages["finetuned"] = stages["final"]
    saved = {stage: _saved(files, stage) for stage in NETWORKS if stage in stages}
    found = {stage: folder for stage, folder in saved.items() if folder is not None}
    made_from = None
    for stage, folder in found.items():
        shared = (
            [about.get("model"), about.get("dataset")] if stage == "base" else [about.get("name")]
        )
        name = "-".join(part or run.id for part in shared)
        metadata = {key: value for key, value in stages[stage].items() if key != "published"}
        artifact = wandb.Artifact(
            re.sub(r"[^\w.-]+", "-", f"{name}-{stage}"),
            type="model",
            metadata={**metadata, "made_from": made_from, "seed": about.get("seed")},
        )
        for file in sorted(folder.iterdir()):
            # immutable: W&B reads it where it is and keeps no copy of the weights elsewhere
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        # what another network is made from is an input of the run as well
        is_input = stage != list(found)[-1]
        _log_network(run, artifact, ["latest", stage], is_input)
        made_from = artifact.name


def _saved(files: RunFiles, stage: str) -> Path | None:
    """The folder of a network; a base network that was not trained here lies where it came from."""
    folders = [files.folder / stage]
    if stage == "base" and files.config.get("ckpt_path"):
        folders.append(Path(files.config["ckpt_path"]))
    return next((path for path in folders if (path / "model.safetensors").is_file()), None)


def _log_network(run: Any, artifact: Any, aliases: list[str], is_input: bool) -> None:
    if not is_input:
        run.log_artifact(artifact, aliases=aliases)
    elif run.offline:
        # ``use_artifact`` does this, but refuses to offline; ``wandb sync`` then makes the link
        run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(artifact, aliases=aliases)
