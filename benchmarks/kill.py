"""Kills a small run at random moments, lets it go on, and compares the final tables.

    python benchmarks/kill.py OUT [KILLS]

writes OUT/kill.log: each moment, what the run was doing, how long it took to go on (all in seconds
of processor time), and whether tables, plan and weights are those of the run that nobody killed.
Exits with 1 where they are not.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from psvit.pipeline import run
from psvit.resume import stored_config

CONF = Path(__file__).parents[1] / "conf"
JOB = (
    "pruning=budgeted",
    "pruning.rounds=2",
    "pruning.kinds=[hidden]",
    "pruning.ratios=[0.5]",
    "pruning.target_memory_saving=0.2",
    "pruning.calibration_images=16",
    "model.embed_dims=[8,16,16,16]",
    "model.mlp_ratio=2",
    "model.time_steps=2",
    "dataset.train_images=60",
    "dataset.val_images=30",
    "dataset.test_images=40",
    "dataset.batch_size=10",
    "trainer.max_epochs=2",
    "training.warmup_epochs=0",
    "training.lr=2e-2",
    "finetune.epochs=2",
    "finetune.warmup_epochs=0",
    "paths.cache_dir=null",
    "logger=csv",
    "report=tables",
    "measure.repeats=0",
    "measure.images=4",
    "measure.batch_sizes=[1]",
    "print_config=false",
)
COMPARED = (
    "table.csv",
    "plan.yaml",
    "plan.csv",
    "uniform.csv",
    "sensitivity.csv",
    "diagnostics.csv",
    "base/model.safetensors",
    "finetuned/model.safetensors",
)


def composed(folder: Path) -> DictConfig:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", [*JOB, f"paths.output_dir={folder}"])


def started(folder: Path, resumed: bool) -> int:
    """The run in a process of its own, which has imported all it takes; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in ((1, "out.txt"), (2, "err.txt")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
        cfg = composed(folder)
        # killed before there was a config: there is nothing to go on from yet
        resumed = resumed and (folder / "config.yaml").exists()
        run(stored_config(cfg, folder) if resumed else cfg, folder, resumed)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_until(process: int, seconds: float) -> None:
    """Until a process has used so much: the same moment of a run, however busy the machine is."""
    while True:
        state, *found = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        used = sum(map(int, found[10:12])) / os.sysconf("SC_CLK_TCK")
        if state == "Z" or used >= seconds:
            return
        time.sleep(0.01)


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in COMPARED]


def doing(folder: Path) -> str:
    """What is done, and what was begun."""
    stages = list((folder / "stages").glob("[!.]*/*"))
    begun = [path.parent.name for path in stages if path.suffix == ".partial"]
    return f"{len(stages) - len(begun)} stages done, at work on {', '.join(begun) or 'none'}"


def main(out: Path, kills: int) -> int:
    """Run once to the end, then ``kills`` times with a kill; returns the exit code."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "runs" / "whole"
    _, status, usage = os.wait4(started(whole, False), 0)
    took = usage.ru_utime + usage.ru_stime
    if status:
        sys.exit((whole / "err.txt").read_text()[-2000:])
    expected, moments, wrong = digests(whole), random.Random(0), 0
    with (out / "kill.log").open("w", buffering=1) as log:
        print(f"uninterrupted: {took:.1f} s; compared: {' '.join(COMPARED)}", file=log)
        for number in range(1, kills + 1):
            folder, at = out / "runs" / str(number), moments.uniform(0.02, 0.98) * took
            process = started(folder, False)
            wait_until(process, at)
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            state = doing(folder) if os.WIFSIGNALED(status) else "it had ended"
            _, status, usage = os.wait4(started(folder, True), 0)
            went_on = usage.ru_utime + usage.ru_stime
            if status:
                verdict = f"FAILED, see {folder}/err.txt"
            else:
                found = digests(folder)
                differ = [n for n, a, b in zip(COMPARED, found, expected, strict=True) if a != b]
                verdict = f"DIFFERS in {', '.join(differ)}" if differ else "equal"
            wrong += verdict != "equal"
            line = f"kill {number:2} at {at:5.1f} s ({state}), went on for {went_on:5.1f} s"
            print(f"{line}: {verdict}", file=log)
        print(f"{kills - wrong} of {kills} equal", file=log)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
