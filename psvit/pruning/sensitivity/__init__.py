"""Sensitivity analysis (PSViT, step 2): what each channel group alone is worth."""

from psvit.pruning.sensitivity.adaptive import Stopping
from psvit.pruning.sensitivity.measure import measure_sensitivity
from psvit.pruning.sensitivity.mended import Mending
from psvit.pruning.sensitivity.table import COLUMNS, grid_points

__all__ = ["COLUMNS", "Mending", "Stopping", "grid_points", "measure_sensitivity"]
