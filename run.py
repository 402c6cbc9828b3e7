"""PSViT's command: ``python run.py pruning=fine_grained``, or ``-m`` for a multirun."""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from psvit.errors import UserError

SHOW_TRACEBACK = "HYDRA_FULL_ERROR"
FAILED = 2
traceback_wanted = os.environ.get(SHOW_TRACEBACK, "0") != "0"
# jobs of a multirun that ended with an error, while the others go on
failed_jobs: list[int] = []


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one job; returns the last network's top-1, for sweepers that optimise it."""
    # torch, Lightning and W&B take seconds to import: a mistyped option is told before that
    from psvit.pipeline import run

    job = HydraConfig.get()
    try:
        results = run(cfg, Path(job.runtime.output_dir))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        # Hydra would print the job's overrides and a traceback before an error reached our caller
        if traceback_wanted:
            raise
        if job.mode is not RunMode.MULTIRUN:
            sys.exit(tell(error))
        failed_jobs.append(tell(error, f"job {job.job.num}: "))
        return float("nan")
    except Exception as error:
        # the other jobs go on, and the comparison at the end tells which failed
        if job.mode is not RunMode.MULTIRUN:
            raise
        traceback.print_exc()
        failed_jobs.append(tell(error, f"job {job.job.num}: "))
        return float("nan")
    return results["rows"][-1]["top1"]


def tell(error: Exception, prefix: str = "") -> int:
    """Print an error as one line; returns the exit code."""
    override = getattr(error, "override", None)
    where = f"{override}: " if override else ""
    print(f"{prefix}{where}{' '.join(str(error).split())}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    # without it Hydra prints a traceback of its own and exits before an error reaches us
    os.environ[SHOW_TRACEBACK] = "1"
    try:
        main()
    except HydraException as error:
        if traceback_wanted:
            raise
        sys.exit(tell(error))
    sys.exit(FAILED if failed_jobs else 0)
