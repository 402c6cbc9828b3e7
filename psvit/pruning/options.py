"""``pruning.sensitivity`` of the config, without what carries it out."""

from collections.abc import Sequence
from dataclasses import dataclass

METHODS = ("measured", "estimated")


@dataclass(frozen=True)
class SensitivityOptions:
    """``pruning.sensitivity`` of the config, where each option is described."""

    images: int | None = None
    groups: Sequence[str] | None = None
    method: str = "measured"
    measured_rows: int = 24
    adaptive: bool = False
    tolerance: float = 1.0
    confidence: float = 0.95
    autocast: bool = False
    mended: bool = False
