"""A run that was stopped goes on from what it had done, and ends as if nothing had happened."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import yaml
from main_job import JOB, RUN, finish, main_job, start
from omegaconf import OmegaConf

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.pipeline import run
from psvit.pruning.allocation import Decision
from psvit.report.jobs import read_overrides
from psvit.report.loggers import close_loggers, logger_ids, open_loggers
from psvit.report.multirun import Comparison
from psvit.resume import (
    FolderTaken,
    Stopped,
    claimed,
    is_run_of,
    launching,
    stoppable,
    write_state,
)

SAME = ("plan.yaml", "plan.csv", "sensitivity.csv", "diagnostics.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_run):
    return main_job(tmp_path_factory, tiny_run)


def until(path, pattern, process):
    end = time.monotonic() + 300
    while not list(path.glob(pattern)):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_killed_then_told_to_stop_then_to_the_end(whole, tmp_path, tiny_run):
    folder = tmp_path / "run"
    overrides = (*tiny_run, *JOB, "paths.cache_dir=null", "report=tables")
    process = start(tmp_path, f"hydra.run.dir={folder}", *overrides)
    try:
        # while it trains
        until(folder, "stages/base/*.partial/checkpoints/base/last.ckpt", process)
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert not (folder / "results.json").exists()

        process = start(tmp_path, f"resume={folder}")
        # while it fine-tunes, with a sensitivity table behind it
        until(folder, "stages/finetuned/*.partial", process)
        process.send_signal(signal.SIGTERM)
        code, _, error = finish(process)
        assert code == 128 + signal.SIGTERM, error
        last = error.splitlines()[-1]
        assert last == f"stopped by SIGTERM; to go on: python run.py resume={folder}"

        process = start(tmp_path, f"resume={folder}")
        code, _, error = finish(process)
        assert code == 0, error
    finally:
        process.kill()
    # what was done was not done again
    log = (folder / "run.log").read_text()
    for stage in ("base", "row", "uniform", "plan"):
        assert re.search(rf"{stage} of .* taken from .*/stages/{stage}/", log), stage
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = (pd.read_csv(place / "table.csv") for place in (folder, whole))
    # times are never twice the same
    measured = [name for name in expected if not re.search("latency|speedup|throughput", name)]
    pd.testing.assert_frame_equal(found[measured], expected[measured], check_exact=True)
    for name in ("base", "pruned", "finetuned"):
        weights = (place / name / "model.safetensors" for place in (folder, whole))
        assert next(weights).read_bytes() == next(weights).read_bytes(), name
    assert not (folder / "stages").exists()


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    found = run(cfg, folder, resumed=True)
    assert found == json.loads((whole / "results.json").read_text())
    before.pop(folder / ".lock", None)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_a_run_that_is_asked_for_again_is_done(whole, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_: pytest.fail("training began"))
    cfg = OmegaConf.load(whole / "config.yaml")
    assert run(cfg, whole) == json.loads((whole / "results.json").read_text())
    cfg.seed = 4
    with pytest.raises(FolderTaken, match="holds a finished run of other options"):
        run(cfg, whole)


def test_a_refused_command_leaves_the_runs_own_record(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    said = read_overrides(folder)
    assert "seed=3" in said
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    refused = [each.replace("seed=3", "seed=4") for each in said]
    command = [str(RUN), *refused, "print_config=false", f"hydra.run.dir={folder}"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN), run_name="__main__")
    assert ended.value.code == 2
    assert "holds a finished run of other options" in capsys.readouterr().err
    assert read_overrides(folder) == said


def test_a_run_that_was_stopped_goes_on_with_the_same_config_only(whole, tmp_path):
    text = (whole / "config.yaml").read_text()
    assert not is_run_of(tmp_path, text)
    shutil.copy(whole / "config.yaml", tmp_path)
    assert is_run_of(tmp_path, text)
    other = text.replace("seed: 3", "seed: 4")
    # nothing is done yet, so that it is begun anew
    (tmp_path / "stages" / ".locks").mkdir(parents=True)
    assert not is_run_of(tmp_path, other)
    (tmp_path / "stages" / "base").mkdir()
    assert is_run_of(tmp_path, text)
    with pytest.raises(FolderTaken, match="holds a stopped run of other options") as error:
        is_run_of(tmp_path, other)
    assert f"go on with resume={tmp_path}, take another folder" in str(error.value)


def test_a_folder_of_its_own_name_that_is_no_runs_stays(config, tiny_run, tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "mine.txt").write_text("precious")
    with pytest.raises(FolderTaken, match="holds a folder stages/, a run's own, and no run"):
        run(config(*tiny_run, "pruning=none", "finetune=none"), tmp_path)
    assert (tmp_path / "stages" / "mine.txt").read_text() == "precious"


def test_a_stopped_run_is_not_written_over(whole, tmp_path):
    cfg = OmegaConf.load(whole / "config.yaml")
    shutil.copy(whole / "config.yaml", tmp_path)
    begun = tmp_path / "stages" / "base" / "epoch"
    begun.parent.mkdir(parents=True)
    begun.write_text("43")
    cfg.seed = 4
    with pytest.raises(FolderTaken, match="holds a stopped run of other options"):
        run(cfg, tmp_path)
    assert begun.read_text() == "43"
    assert (tmp_path / "config.yaml").read_text() == (whole / "config.yaml").read_text()


def test_a_job_leaves_no_note_in_the_folder_of_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Comparison, "failed", [])
    give_up = runpy.run_path(str(RUN))["give_up"]
    give_up(tmp_path, FolderTaken("hydra.run.dir", tmp_path, "another process works on it"))
    assert not list(tmp_path.iterdir()) and len(Comparison.failed) == 1
    give_up(tmp_path, UserError("seed", -1, "expected another"))
    assert (tmp_path / "failure.txt").read_text() == "seed=-1: expected another\n"
    (tmp_path / "failure.txt").unlink()
    write_state(tmp_path, finished=True)
    give_up(tmp_path, UserError("seed", -1, "expected another"))
    assert not (tmp_path / "failure.txt").exists() and len(Comparison.failed) == 2


def test_wandb_goes_on_with_its_run(config, tmp_path):
    logger = config("logger=wandb", f"paths.output_dir={tmp_path}").logger
    loggers = open_loggers(logger, {"wandb": "as1before"})
    try:
        assert logger_ids(loggers) == {"wandb": "as1before"}
    finally:
        close_loggers(loggers)
    assert list(tmp_path.glob("wandb/offline-run-*-as1before"))


def test_one_process_at_a_time(tmp_path):
    program = f"""
from pathlib import Path
from psvit.resume import claimed
with claimed(Path({str(tmp_path)!r})):
    print("mine")
"""
    command = [sys.executable, "-c", program]
    with claimed(tmp_path):
        found = subprocess.run(command, capture_output=True, text=True, cwd=RUN.parent)
        assert "another process works on this run" in found.stderr and not found.stdout
    found = subprocess.run(command, capture_output=True, text=True, cwd=RUN.parent)
    assert found.stdout == "mine\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_the_next_one_the_process(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stoppable(tmp_path):
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        finally:
            assert signal.getsignal(number) == signal.SIG_DFL
    assert stopped.value.exit_code == 128 + number
    assert str(stopped.value).endswith(f"to go on: python run.py resume={tmp_path}")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_stop_ends_the_jobs_that_it_has_in_processes(tmp_path, number):
    began = time.monotonic()
    job = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    job.start()
    # as on Ctrl-C, which reaches a job, too
    if number == signal.SIGINT:
        threading.Timer(0.5, job.terminate).start()
    with pytest.raises(Stopped) as stopped, launching(lambda: tmp_path):
        os.kill(os.getpid(), number)
    assert not job.is_alive() and time.monotonic() - began < 60
    told = f"stopped by {signal.Signals(number).name}; to go on: the same command"
    assert str(stopped.value) == f"{told}, hydra.sweep.dir={tmp_path}"
    with pytest.raises(Stopped, match="to go on: the same command$"), launching(lambda: None):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("other", [AttributeError("half done"), SystemExit()])
def test_a_signal_is_told_whatever_a_library_raises_on_the_way(tmp_path, other):
    with pytest.raises(Stopped, match="stopped by SIGTERM"), stoppable(tmp_path):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise other
    # nothing was told here
    with pytest.raises(type(other)), stoppable(tmp_path):
        raise other


def test_a_decision_is_read_as_it_was_made(tmp_path):
    why = pd.DataFrame(
        {"group": ["a", "b"], "ratio": [0.1 + 0.2, 1 / 3], "predicted_cost": [float("nan"), 1e-17]}
    )
    decision = Decision(Plan({"a": [0, 2], "b": [1]}), why, "kl", pd.DataFrame({"tried": [0.1]}))
    decision.save(tmp_path)
    found = Decision.load(tmp_path)
    assert dict(found.plan) == dict(decision.plan) and found.measure == "kl"
    pd.testing.assert_frame_equal(found.why, why, check_exact=True)
    pd.testing.assert_frame_equal(found.log, decision.log, check_exact=True)
