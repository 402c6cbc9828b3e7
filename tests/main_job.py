"""The main job: ``python run.py`` as a user runs it, once for all tests that read its folder."""

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from psvit.pruning import checkpoint

RUN = Path(__file__).parents[1] / "run.py"
TARGET = 0.3
JOB = (
    "pruning=fine_grained",
    "pruning.ratios=[0.3,0.6]",
    f"pruning.target_memory_saving={TARGET}",
    "finetune.epochs=1",
    "logger=csv",
    "seed=3",
)
JOB_ROWS = ["base", "uniform", "fine_grained", "fine_grained + fine-tuning"]


def start(folder, *overrides, **environment):
    """``python run.py`` from another folder than the project's."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(RUN), *overrides],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", **environment},
    )


def finish(process):
    """Its exit code, standard output and standard error."""
    out, error = process.communicate(timeout=900)
    return process.returncode, out, error


def main_job(factory, tiny_run):
    """The run's folder after the main job, which the first to ask for it runs.

    Of several workers too, whose temporary folders lie in one.
    """
    base = factory.getbasetemp()
    work = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "main_job"
    with FileLock(f"{work}.lock"):
        if not work.exists():
            process = start(work, f"hydra.run.dir={work}/run", *tiny_run, *JOB)
            try:
                code, _, error = finish(process)
            finally:
                process.kill()
            assert code == 0, error
    return work / "run"


def load(folder):
    network, description = checkpoint.load(folder)
    return network.eval(), description


def rows_by_name(results):
    return {row["name"]: row for row in results["rows"]}
