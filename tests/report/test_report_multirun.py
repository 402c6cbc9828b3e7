import logging
import sys
from typing import ClassVar

import hydra
import pandas as pd
import pytest
import report_runs
from comparison_runs import write_job, write_multirun
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from omegaconf import OmegaConf

from psvit.report import loggers, write_comparison
from psvit.report.__main__ import main
from psvit.report.jobs import FAILURE, find_jobs, read_job
from psvit.report.multirun import Comparison, log_summary, write_sensitivity

FILES = {"comparison.md", "comparison.csv", "runs.csv", "figures", "report.html"}
CALLBACK = "+hydra.callbacks.comparison._target_=psvit.report.multirun.Comparison"


def added(folder):
    """What is in a folder beside jobs."""
    return {path.name for path in folder.iterdir() if not path.name.isdecimal()}


def end_multirun(config_folder, sweep):
    """Compose a config as a multirun does, and tell its callbacks that the multirun has ended."""
    (config_folder / "config.yaml").write_text("seed: 0\n")
    with initialize_config_dir(str(config_folder), version_base="1.3"):
        config = compose("config", [CALLBACK, f"hydra.sweep.dir={sweep}"], return_hydra_config=True)
    Callbacks(config).on_multirun_end(config=config, config_name="config")


def test_the_callback_leaves_the_comparison_in_the_multirun(tmp_path, capsys):
    sweep = write_multirun(tmp_path / "sweep")
    end_multirun(tmp_path, sweep)
    assert added(sweep) == FILES
    table = pd.read_csv(sweep / "comparison.csv", keep_default_na=False)
    assert len(table) == 5 and "failed" in set(table["status"])
    assert {path.suffix for path in (sweep / "figures").iterdir()} == {".png", ".svg"}
    printed = capsys.readouterr().out
    assert "12.00 ± 2.00" in printed and str(sweep / "comparison.md") in printed


def test_a_failed_job_is_told_with_its_reason(tmp_path, monkeypatch):
    sweep = write_multirun(tmp_path / "sweep")
    failed = next(job for job in find_jobs(sweep) if read_job(job).problem)
    (failed / FAILURE).write_text("training.lr=9: too high\n")
    monkeypatch.setattr(Comparison, "failed", [])
    end_multirun(tmp_path, sweep)
    assert Comparison.failed == [f"{failed.name}: training.lr=9: too high"]
    table = pd.read_csv(sweep / "comparison.csv", keep_default_na=False)
    assert table["job"][table["status"] == "failed"].item().endswith("(training.lr=9: too high)")


def test_sensitivity_tables_are_put_together(tmp_path):
    """Jobs with a part of the groups and a ratio each give the table of one job, row for row."""
    rows = [
        f"{group},{ratio},{99 - i}.1230\n"
        for i, (group, ratio) in enumerate(
            (group, ratio)
            for group in ("stage2.b", "stage1.a", "head")
            for ratio in ("0.1", "0.25")
        )
    ]
    header = "group,ratio,top1\n"
    number = 0
    for groups in (["stage2.b", "stage1.a"], ["head"]):
        for ratio in ("0.1", "0.25"):
            job = write_job(tmp_path / str(number), "sensitivity", 0, {"base": 90.0}, epochs=0)
            here = [row for row in rows if row.split(",")[0] in groups and f",{ratio}," in row]
            (job / "sensitivity.csv").write_text(header + "".join(here))
            number += 1
    (path,) = write_sensitivity(tmp_path)
    assert path.read_text() == header + "".join(rows)
    # another seed is another table
    job = write_job(tmp_path / "9", "sensitivity", 1, {"base": 90.0}, epochs=0)
    (job / "sensitivity.csv").write_text(header + rows[0])
    assert len(write_sensitivity(tmp_path)) == 2


def test_jobs_that_measured_the_same_cut_differently_keep_their_tables(tmp_path, caplog):
    for number, importance in enumerate(["l2", "random"]):
        job = write_job(
            tmp_path / str(number),
            "sensitivity",
            0,
            {"base": 90.0},
            importance=importance,
            epochs=0,
        )
        (job / "sensitivity.csv").write_text(f"group,ratio,top1\nstem,0.1,{90 - number}.0\n")
    assert write_sensitivity(tmp_path) == [] and not (tmp_path / "sensitivity.csv").exists()
    assert "jobs differ in what they measured" in caplog.text


def test_one_wandb_run_for_the_multirun(tmp_path, monkeypatch):
    sweep = write_multirun(tmp_path / "sweep")
    write_comparison([sweep], sweep)
    opened = {}

    class Run:
        logged: ClassVar[dict] = {}

        def log(self, values):
            self.logged.update(values)

    monkeypatch.setattr(loggers, "open_loggers", lambda config: opened.update(config) or [Run()])
    monkeypatch.setattr(loggers, "wandb_run", lambda opened: opened[0])
    monkeypatch.setattr(loggers, "close_loggers", lambda opened: None)
    config = OmegaConf.create({"logger": {"wandb": {"save_dir": "${nowhere}", "name": None}}})
    log_summary(config, sweep)
    assert opened["wandb"].group == f"{tmp_path.name}/sweep"
    assert opened["wandb"].save_dir == str(sweep)
    assert {"multirun/comparison", "multirun/runs", "multirun/pareto_figure"} == set(Run.logged)
    assert len(Run.logged["multirun/runs"].data) == len(pd.read_csv(sweep / "runs.csv"))
    # not where the jobs are not logged there
    opened.clear()
    log_summary(OmegaConf.create({"logger": {}}), sweep)
    assert not opened


@pytest.mark.parametrize("jobs", [0, 1])
def test_an_error_is_one_line(tmp_path, caplog, jobs):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    if jobs:
        write_multirun(sweep)
        # a folder where a file is to be
        (sweep / "runs.csv").mkdir()
    with caplog.at_level(logging.WARNING):
        end_multirun(tmp_path, sweep)
    (record,) = [record for record in caplog.records if record.name.startswith("psvit")]
    assert "are not compared" in record.getMessage() and "\n" not in record.getMessage()


def test_hydra_calls_it_after_the_last_job(tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "sweep"
    config = {
        "seed": 0,
        "hydra": {
            "sweep": {"dir": str(sweep), "subdir": "${hydra.job.num}"},
            "callbacks": {"comparison": {"_target_": "psvit.report.multirun.Comparison"}},
        },
    }
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    monkeypatch.setattr(sys, "argv", ["job", "-m", "seed=0,1,2"])

    @hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="config")
    def job(cfg):
        if cfg.seed < 2:
            folder = tmp_path / f"made{cfg.seed}"
            write_job(folder, "uniform", cfg.seed, {"base": 90.0, "pruned": 80.0 - 2 * cfg.seed})
            (folder / "results.json").rename(sweep / str(cfg.seed) / "results.json")

    job()
    table = pd.read_csv(sweep / "comparison.csv", keep_default_na=False)
    assert table["status"].tolist() == ["done", "failed"]
    assert float(table["drop"][0]) == 11.0 and table["job"][1] == "seed=2 (no results)"
    assert "11.00 ± 1.41" in capsys.readouterr().out


def test_command_compares_a_multirun_where_it_lies(tmp_path, capsys):
    sweep = write_multirun(tmp_path / "sweep")
    assert main([str(sweep)]) == 0
    assert added(sweep) == FILES
    first = (sweep / "comparison.md").read_bytes()
    # its own figures are no job
    assert main([str(sweep)]) == 0 and (sweep / "comparison.md").read_bytes() == first
    assert main([str(sweep), "--out", str(tmp_path / "else" / "where")]) == 0
    assert added(tmp_path / "else" / "where") == FILES
    assert "1.00 ± 0.00" in capsys.readouterr().out


def test_command_compares_several_folders_in_the_current_one(tmp_path, monkeypatch):
    sweep = write_multirun(tmp_path / "sweep")
    groups = {"stage1.block1.mlp.hidden": ("hidden", 64)}
    single = report_runs.write_run(tmp_path / "single", groups)
    monkeypatch.chdir(tmp_path)
    assert main([str(sweep / "3"), str(sweep), str(single)]) == 0
    assert added(tmp_path / "comparison") == FILES and added(sweep) == set()
    runs = pd.read_csv(tmp_path / "comparison" / "runs.csv", keep_default_na=False)
    # the folder given twice is counted once
    assert (runs["policy"] == "budgeted").sum() == 6
    assert set(runs["target"]) == {"30 %", "22.4 %"}


def test_command_refuses_folders_without_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(write_multirun(tmp_path / "sweep")), str(empty)]) == 2
    assert capsys.readouterr().err == (
        f"folder={empty}: not a run folder: it holds no results.json\n"
    )
