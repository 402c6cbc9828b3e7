"""Compares the jobs of a multirun when it ends: ``hydra.callbacks`` calls it."""

import copy
import logging
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from psvit.files import write_csv
from psvit.report import write_comparison
from psvit.report.jobs import find_jobs, read_job

_log = logging.getLogger(__name__)


def write_sensitivity(folder: Path) -> list[Path]:
    """Put the sensitivity tables of the jobs in ``folder`` together.

    Jobs of ``pruning=sensitivity`` on one base network, each with some of the groups or ratios,
    give ``sensitivity.csv``: the rows in the order in which one job would have measured them. With
    several models, datasets or seeds each has a file of its own, and none where jobs measured the
    same cut differently, as with another importance.
    """
    parts: dict[tuple, list[pd.DataFrame]] = {}
    for job in map(read_job, find_jobs(folder)):
        table = job.folder / "sensitivity.csv"
        if job.policy == "sensitivity" and not job.problem and table.is_file():
            # as text: what is put together is not rounded anew
            rows = pd.read_csv(table, dtype=str, keep_default_na=False)
            parts.setdefault((job.model, job.dataset, job.seed), []).append(rows)
    written = []
    for (model, dataset, seed), tables in parts.items():
        rows = pd.concat(tables).drop_duplicates()
        if rows.duplicated(["group", "ratio"]).any():
            said = "%s on %s, seed %s: jobs differ in what they measured; each keeps its own table"
            _log.warning(said, model, dataset, seed)
            continue
        places = {name: place for place, name in enumerate(dict.fromkeys(rows["group"]))}
        rows = rows.sort_values(
            ["group", "ratio"],
            key=lambda column: column.map(places if column.name == "group" else float),
        )
        name = "sensitivity" if len(parts) == 1 else f"sensitivity_{model}_{dataset}_seed{seed}"
        path = folder / f"{name}.csv"
        write_csv(path, rows)
        written.append(path)
    return written


def log_summary(config: DictConfig, folder: Path) -> None:
    """One W&B run for a whole multirun, in the group of its jobs: tables and the figure.

    Nothing happens where the jobs are not logged to W&B.
    """
    if "wandb" not in (config.get("logger") or {}):
        return
    group = config.get("group") or "/".join(folder.absolute().parts[-2:])
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    config.logger.wandb.update(
        {
            "name": f"summary of {group}",
            "group": group,
            "job_type": "summary",
            "save_dir": str(folder),
        }
    )
    # with Lightning: Hydra makes a callback of this module before any option is checked
    from psvit.report.loggers import close_loggers, open_loggers, wandb_run

    loggers = open_loggers({"wandb": config.logger.wandb})
    run = wandb_run(loggers)
    if run is None:
        return
    import wandb

    for path in sorted(folder.glob("*.csv")):
        table = pd.read_csv(path)
        run.log({f"multirun/{path.stem}": wandb.Table(dataframe=table.astype(object))})
    for path in sorted((folder / "figures").glob("*.png")):
        run.log({f"multirun/{path.stem}_figure": wandb.Image(str(path))})
    close_loggers(loggers)


class Comparison(Callback):
    """Hydra's callback: a multirun's folder gets the comparison of its jobs.

    Attributes:
        failed: the jobs of this process's multirun that failed, each with its reason.
        folder: the multirun's, once it has begun.
    """

    failed: ClassVar[list[str]] = []
    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note where the jobs are, for whoever is told to stop."""
        Comparison.folder = Path(config.hydra.sweep.dir)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the jobs; whatever fails is one line and never the multirun."""
        try:
            folder = Path(config.hydra.sweep.dir)
            for job in map(read_job, find_jobs(folder)):
                if job.problem:
                    self.failed.append(f"{job.folder.name}: {job.problem}")
            write_sensitivity(folder)
            write_comparison([folder], folder)
            print(f"comparison: {folder / 'comparison.md'}")
            log_summary(config, folder)
        except Exception as error:  # the jobs' results are on disk
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.warning("the jobs of this multirun are not compared: %s", reason)
