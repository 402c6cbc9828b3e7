"""Checks a composed config before anything long starts."""

from omegaconf import DictConfig

from psvit.config.paths import make_absolute
from psvit.config.sections import check_sections
from psvit.config.values import check_values

__all__ = ["check_config", "make_absolute"]


def check_config(cfg: DictConfig) -> None:
    """Raise a UserError for the first value that cannot be right, by itself or beside others."""
    check_sections(cfg)
    check_values(cfg)
    # with Lightning, which takes longer to import than all checks: not for a slip of the pen
    from psvit.config.together import check_together

    check_together(cfg)
