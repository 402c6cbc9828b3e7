"""PSViT's command: ``python run.py pruning=fine_grained``, or ``-m`` for a multirun."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from psvit.errors import UserError

SHOW_TRACEBACK = "HYDRA_FULL_ERROR"


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Run one job; returns the last network's top-1, for sweepers that optimise it."""
    # torch, Lightning and W&B take seconds to import: a mistyped option is told before that
    from psvit.pipeline import run

    results = run(cfg, Path(HydraConfig.get().runtime.output_dir))
    return results["rows"][-1]["top1"]


if __name__ == "__main__":
    wanted = os.environ.get(SHOW_TRACEBACK, "0") != "0"
    # without it Hydra prints a traceback of its own and exits before an error reaches us
    os.environ[SHOW_TRACEBACK] = "1"
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if wanted:
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
