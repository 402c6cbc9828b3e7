"""PSViT's command: ``python run.py pruning=fine_grained``, or ``-m`` for a multirun."""

import atexit
import logging
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from psvit.errors import TRACEBACK, UserError, traceback_wanted
from psvit.files import write_text
from psvit.quoting import how_to_quote
from psvit.resume import (
    FolderTaken,
    Stopped,
    finished,
    launching,
    not_written,
    of_the_disk,
    stoppable,
)
from psvit.stored import resumed_arguments, stored_config
from psvit.suggest import (
    NO_CHOICE,
    check_choices,
    check_files,
    choices,
    did_you_mean,
    without_append,
)

FAILED = 2
# asked before Hydra is told to raise what it meets
traceback_shown = traceback_wanted()
# what a failed job of a multirun leaves in its folder; the comparison at the end reads it
REASON = "failure.txt"
# launchers and sweepers of Hydra that an extra installs
PLUGINS = re.compile(r"hydra/(launcher|sweeper)/(joblib|optuna|submitit_(local|slurm))")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | list[float] | None:
    """Run one job; returns the last network's ``objectives``, for sweepers that optimise them, and
    None where the job failed."""
    # torch takes a second to import, and Lightning, timm and W&B several: a mistyped option is told
    # before the one, a value that cannot be right before the others
    from psvit.config import check_config

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    in_multirun = job.mode is RunMode.MULTIRUN
    if in_multirun:
        cfg.group = cfg.group or "/".join(Path(job.sweep.dir).absolute().parts[-2:])
    resumed = cfg.resume is not None
    try:
        if resumed:
            cfg = stored_config(cfg, folder)
        elif cfg.paths.output_dir != job.runtime.output_dir:
            option = "hydra.sweep.dir" if in_multirun else "hydra.run.dir"
            reason = f"is the folder that Hydra makes: expected {option} in its place"
            raise UserError("paths.output_dir", cfg.paths.output_dir, reason)
        # before processes are started for it
        check_config(cfg)
        from psvit.pipeline import run
        from psvit.processes import run_over_processes

        with stoppable(folder):
            work = partial(run, resumed=resumed, overrides=list(job.overrides.task))
            results = run_over_processes(work, cfg, folder, job.job_logging)
        (folder / REASON).unlink(missing_ok=True)
    except Stopped as stopped:
        if multiprocessing.parent_process() is None:
            raise
        # a launcher's process, which would wait for another job
        print(stopped, file=sys.stderr, flush=True)
        os._exit(stopped.exit_code)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        # Hydra would print the job's overrides and a traceback before an error reached our caller
        if traceback_shown:
            raise
        if not in_multirun:
            sys.exit(tell(error))
        give_up(folder, error)
        return None
    except Exception as error:
        # the other jobs go on, and the comparison at the end tells which failed
        if not in_multirun:
            raise
        traceback.print_exc()
        give_up(folder, error)
        return None
    return objectives(cfg, results["rows"][-1])


def objectives(cfg: DictConfig, row: dict[str, float]) -> float | list[float]:
    """One value, or a list of values where ``objectives`` is a list."""
    if OmegaConf.is_list(cfg.objectives):
        return [row[name] for name in cfg.objectives]
    return row[cfg.objectives]


def give_up(folder: Path, error: Exception) -> None:
    """Tell and note why a job of a multirun failed."""
    tell(error, f"job {folder.name}: ")
    if isinstance(error, FolderTaken) or finished(folder):
        # the folder is another run's, and so would the note be
        from psvit.report.multirun import Comparison

        Comparison.failed.append(f"{folder.name}: {one_line(error)}")
        return
    # where the disk is the reason, this fails too
    with suppress(OSError):
        write_text(folder / REASON, f"{one_line(error)}\n")


def one_line(error: Exception) -> str:
    return " ".join(without_append(error).split()) or type(error).__name__


def tell(error: Exception, prefix: str = "") -> int:
    """Print an error as one line; returns the exit code."""
    override = getattr(error, "override", None)
    where = f"{override}: " if override else ""
    hint = missing_plugin(error) or how_to_quote(error) or did_you_mean(error, sys.argv[1:])
    print(f"{prefix}{where}{one_line(error)}{hint}", file=sys.stderr)
    return FAILED


def as_hydra_has_it(arguments: Sequence[str]) -> list[str]:
    """``+experiment=NAME``, which would add a group to the defaults, as ``experiment=NAME``, and
    ``model.module=NAME``, which few configs have, as ``++model.module=NAME``."""
    written = {r"\+experiment=": "experiment=", r"\+?model\.module=": "++model.module="}
    found = list(arguments)
    for given, meant in written.items():
        found = [re.sub(f"^{given}", meant, argument) for argument in found]
    return found


def multirun_folder() -> Path | None:
    """Where the jobs of a multirun are; None before it has begun."""
    # Hydra makes the callback; without one there is nothing to import it for
    module = sys.modules.get("psvit.report.multirun")
    return module.Comparison.folder if module else None


def missing_plugin(error: Exception) -> str:
    """How to get a launcher or sweeper that is not installed; "" for any other error."""
    asked = NO_CHOICE.search(str(error))
    if asked and PLUGINS.fullmatch("/".join(asked.groups())):
        return ' (not installed: pip install -e ".[sweeps]")'
    return ""


if __name__ == "__main__":
    # without it Hydra prints a traceback of its own and exits before an error reaches us
    os.environ[TRACEBACK] = "1"
    # torchrun and srun start one for each device: the first one's folder is the run's
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) > 0:
        elsewhere = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
        sys.argv += [f"hydra.{mode}.dir={elsewhere}" for mode in ("run", "sweep")]
    # Optuna's database tells every plugin that it sets up
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # what --help shows of the groups
    OmegaConf.register_new_resolver("choices", lambda: choices(sys.argv[1:]), replace=True)
    try:
        sys.argv[1:] = resumed_arguments(as_hydra_has_it(sys.argv[1:]))
        check_choices(sys.argv[1:])
        check_files(sys.argv[1:])
        with launching(multirun_folder):
            main()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    # the last: a config, conf/local for instance, that is no YAML
    except (HydraException, UserError, yaml.YAMLError) as error:
        if traceback_shown:
            raise
        sys.exit(tell(error))
    except OSError as error:
        # Hydra makes the run's folder
        if traceback_shown or not of_the_disk(error):
            raise
        sys.exit(tell(not_written(error)))
    from psvit.report.multirun import Comparison

    sys.exit(FAILED if Comparison.failed else 0)
