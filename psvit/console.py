"""Keeps the libraries' chatter out of a user's terminal."""

import logging
import warnings


def quiet_libraries() -> None:
    """Hide notices that a user can do nothing about; warnings of this project still show."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        # Lightning's own handler and Hydra's would each print the same line
        logger.propagate = False
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*lr_scheduler.step\\(\\).*before.*optimizer.step\\(\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)
