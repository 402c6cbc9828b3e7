"""Kills a small run at random moments of every stage, lets it go on, and compares the final tables.

    python benchmarks/kill.py OUT [KILLS]

writes OUT/kill.log: each moment, what the run was doing, how long it took to go on (all in seconds
of processor time), and whether tables, plan and weights are those of the run that nobody killed.
The stages are hit in turn, each at a random moment; then one SIGTERM each in training, sensitivity
and fine-tuning. Exits with 1 where something differs.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from psvit.pipeline import run
from psvit.resume import Stopped, stoppable
from psvit.stored import stored_config

CONF = Path(__file__).parents[1] / "conf"
JOB = (
    "pruning=budgeted",
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


# the stages that are told to stop as well
TOLD = ("base", "plan, sensitivity", "finetuned")
# of what is over sooner, no moment can be met
SHORTEST = 0.1


class Span(NamedTuple):
    """What a run did from one moment to another, in seconds of processor time."""

    state: str
    begun: str
    start: float
    end: float


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
        with stoppable(folder):
            run(stored_config(cfg, folder) if resumed else cfg, folder, resumed)
        code = 0
    except Stopped as stopped:
        code = stopped.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def used(process: int) -> float | None:
    """Seconds of processor time so far, which do not depend on how busy the machine is; None where
    the process has ended."""
    state, *found = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return None if state == "Z" else sum(map(int, found[10:12])) / os.sysconf("SC_CLK_TCK")


def watched(process: int, folder: Path) -> list[Span]:
    """What the run does until it ends."""
    spans, state, start = [], doing(folder), 0.0
    while (now := used(process)) is not None:
        if (found := doing(folder)) != state:
            spans.append(Span(*state, start, now))
            state, start = found, now
        time.sleep(0.01)
    return [span for span in spans if span.end - span.start >= SHORTEST]


def wait_for(process: int, folder: Path, span: Span, share: float) -> None:
    """Until the run does what it did in ``span``, and for a share of the time that this took."""
    until = float("inf")
    while (now := used(process)) is not None and now < until:
        if until == float("inf") and doing(folder)[0] == span.state:
            until = now + share * (span.end - span.start)
        time.sleep(0.005)


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in COMPARED]


def doing(folder: Path) -> tuple[str, str]:
    """What is done and what was begun, in words; and what was begun alone."""
    stages = list((folder / "stages").glob("[!.]*/*"))
    begun = sorted(path.parent.name for path in stages if path.suffix == ".partial")
    names = ", ".join(begun) or "nothing"
    return f"{len(stages) - len(begun)} stages done, at work on {names}", names


def outcome(folder: Path, status: int, expected: list[str]) -> str:
    """Whether a run that went on ended as the one that nobody stopped."""
    if status:
        return f"FAILED, see {folder}/err.txt"
    pairs = zip(COMPARED, digests(folder), expected, strict=True)
    differ = [name for name, found, right in pairs if found != right]
    return f"DIFFERS in {', '.join(differ)}" if differ else "equal"


def main(out: Path, kills: int) -> int:
    """Run once to the end, then ``kills`` times with a kill; returns the exit code."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "runs" / "whole"
    process = started(whole, False)
    spans = defaultdict(list)
    for span in watched(process, whole):
        spans[span.begun].append(span)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit((whole / "err.txt").read_text()[-2000:])
    expected, moments, wrong = digests(whole), random.Random(0), 0
    stages = list(spans)
    stops = [(signal.SIGKILL, stages[number % len(stages)]) for number in range(kills)]
    stops += [(signal.SIGTERM, stage) for stage in TOLD]
    with (out / "kill.log").open("w", buffering=1) as log:
        took = usage.ru_utime + usage.ru_stime
        print(f"uninterrupted: {took:.1f} s; compared: {' '.join(COMPARED)}", file=log)
        for number, (sign, stage) in enumerate(stops, 1):
            folder = out / "runs" / str(number)
            process = started(folder, False)
            wait_for(process, folder, moments.choice(spans[stage]), moments.random())
            at = used(process) or took
            os.kill(process, sign)
            _, status = os.waitpid(process, 0)
            stopped = os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 128 + sign
            state = doing(folder)[0] if stopped else "it had ended"
            _, status, usage = os.wait4(started(folder, True), 0)
            went_on = usage.ru_utime + usage.ru_stime
            verdict = outcome(folder, status, expected)
            wrong += verdict != "equal"
            line = f"{sign.name} {number:2} at {at:5.1f} s ({state}), went on for {went_on:5.1f} s"
            print(f"{line}: {verdict}", file=log)
        print(f"{len(stops) - wrong} of {len(stops)} equal", file=log)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
