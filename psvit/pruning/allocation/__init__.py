"""Policies: how much of each channel group goes. Each gives a plan and why; surgery applies it."""

from psvit.pruning.allocation.accuracy import within_accuracy
from psvit.pruning.allocation.budget import (
    COUNTED,
    RESOURCES,
    Budget,
    largest_cut,
    make_meter,
)
from psvit.pruning.allocation.budgeted import budgeted
from psvit.pruning.allocation.decision import Decision, explain
from psvit.pruning.allocation.fine_grained import fine_grained
from psvit.pruning.allocation.prioritized import prioritized
from psvit.pruning.allocation.threshold import NORMALIZERS, global_threshold
from psvit.pruning.allocation.uniform import large_groups, uniform, uniform_at

__all__ = [
    "COUNTED",
    "NORMALIZERS",
    "RESOURCES",
    "Budget",
    "Decision",
    "budgeted",
    "explain",
    "fine_grained",
    "global_threshold",
    "large_groups",
    "largest_cut",
    "make_meter",
    "prioritized",
    "uniform",
    "uniform_at",
    "within_accuracy",
]
