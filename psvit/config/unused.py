"""Options that a run was told, and that it has no use for."""

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

_log = logging.getLogger(__name__)


def tell_unused(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """A line in the log for the options of a training that the run leaves out.

    Args:
        cfg: the composed config.
        overrides: what Hydra was told: of nothing else is it known that somebody counts on it.
    """
    left_out = []
    if cfg.ckpt_path is not None:
        left_out.append(("training", "trainer.max_epochs", "ckpt_path names a trained network"))
    if not cfg.train:
        left_out.append(("finetune", "finetune.epochs", "train=false trains nothing"))
    given = {each: each.partition("=")[0].lstrip("+~") for each in overrides}
    for group, epochs, why in left_out:
        unused = [
            each
            for each, name in given.items()
            if (name == epochs or name.split(".")[0] == group)
            # which ask for no training
            and each not in (f"{group}=none", f"{epochs}=0")
        ]
        if unused:
            _log.info("without effect, as %s: %s", why, ", ".join(unused))
