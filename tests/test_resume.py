"""A run that was stopped goes on from what it had done, and ends as if nothing had happened."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
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
from psvit.report.loggers import close_loggers, logger_ids, open_loggers
from psvit.report.multirun import Comparison
from psvit.resume import (
    FolderTaken,
    Stopped,
    claimed,
    is_run_of,
    resumed_arguments,
    stoppable,
    stored_config,
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
        assert code == 128 + signal.SIGTERM
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
    give_up(tmp_path, FolderTaken("paths.output_dir", tmp_path, "another process works on it"))
    assert not list(tmp_path.iterdir()) and len(Comparison.failed) == 1
    give_up(tmp_path, UserError("seed", -1, "expected another"))
    assert (tmp_path / "failure.txt").read_text() == "seed=-1: expected another\n"


def test_wandb_goes_on_with_its_run(config, tmp_path):
    logger = config("logger=wandb", f"paths.output_dir={tmp_path}").logger
    loggers = open_loggers(logger, {"wandb": "as1before"})
    try:
        assert logger_ids(loggers) == {"wandb": "as1before"}
    finally:
        close_loggers(loggers)
    assert list(tmp_path.glob("wandb/offline-run-*-as1before"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", [str(RUN), f"hydra.run.dir={tmp_path}/file/run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"paths.output_dir={tmp_path}/file/run: Not a directory; expected")


@pytest.fixture
def folder(tmp_path):
    """A run's folder that holds a config and nothing else."""
    config = {
        "paths": {"output_dir": str(tmp_path)},
        "model": {"module": None},
        "trainer": {"_target_": "lightning.pytorch.Trainer"},
        "logger": {
            "csv": {
                "_target_": "lightning.pytorch.loggers.CSVLogger",
                "save_dir": str(tmp_path),
            }
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def changed(folder, **values):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))
    return folder


def test_the_folder_is_hydras(folder):
    found = resumed_arguments([f"resume={folder}", "print_config=false"])
    assert found[2:] == [f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]
    assert resumed_arguments(["seed=1", "resume=null"]) == ["seed=1", "resume=null"]


@pytest.mark.parametrize(
    "further", [["seed=1"], ["-m"], ["pruning=uniform"], ["+a=1"], ["hydra.run.dir=x"], ["resume"]]
)
def test_what_would_change_the_run_is_refused(folder, further):
    with pytest.raises(UserError, match="goes on with the config of its folder") as error:
        resumed_arguments([f"resume={folder}", *further])
    assert str(error.value).startswith(f"resume={folder}: {further[0]} beside it")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"expected the folder of a run, with its config\.yaml"):
            resumed_arguments([f"resume={name}"])


def test_the_folder_may_have_moved(folder, tmp_path_factory, config):
    place = tmp_path_factory.mktemp("moved") / "run"
    shutil.move(folder, place)
    cfg = stored_config(config(), place)
    assert cfg.paths.output_dir == cfg.logger.csv.save_dir == str(place)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "lightning.pytorch.loggers.wandb.os.system",
        "lightning.pytorch.trainer.trainer.os.system",
        "subprocess.Popen",
        ["lightning.pytorch.Trainer"],
    ],
)
def test_code_is_not_taken_from_a_folder(folder, config, target):
    changed(folder, logger={"deep": [{"_target_": target}]})
    with pytest.raises(UserError, match="which is not run from a folder"):
        stored_config(config(), folder)


def test_a_module_is_imported_only_where_the_user_says_so(folder, config):
    changed(folder, model={"module": "my_network"})
    with pytest.raises(UserError, match=r"add model\.module=my_network"):
        stored_config(config(), folder)
    assert stored_config(config("+model.module=my_network"), folder).model.module == "my_network"


def test_yaml_makes_no_objects(folder, config, tmp_path):
    (folder / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        stored_config(config(), folder)
    assert not (tmp_path / "made").exists()


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


@pytest.mark.parametrize("strerror", ["No space left on device", "Read-only file system"])
def test_a_disk_that_takes_no_more_is_one_line(folder, strerror):
    number = {"No space left on device": 28, "Read-only file system": 30}[strerror]
    with pytest.raises(UserError) as error, claimed(folder):
        raise OSError(number, strerror, str(folder / "results.json"))
    message = str(error.value)
    assert message.startswith(f"paths.output_dir={folder}/results.json: {strerror}; expected")
    assert message.endswith(f"then go on with resume={folder}")


def test_other_errors_are_not_taken_for_the_disks(tmp_path):
    with pytest.raises(FileNotFoundError), claimed(tmp_path):
        (tmp_path / "none").read_text()


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
