"""The grid of a sensitivity analysis and the rows of its table."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import pandas as pd
from torch import nn

from psvit.errors import UserError
from psvit.measure.footprint import memory_saving, parameters
from psvit.pruning.ranking import Ranking, removable
from psvit.pruning.sensitivity.tallies import Candidate, Values
from psvit.pruning.surgery import ParameterCounter

COLUMNS = [
    "group",
    "kind",
    "size",
    "ratio",
    "removed",
    "parameters",
    "memory_saving",
    "images",
    "top1",
    "top1_stderr",
    "drop",
    "drop_stderr",
    "loss",
    "kl",
    "method",
]


def grid_points(ranking: Ranking, ratios: Sequence[float]) -> list[tuple[str, float]]:
    """(group, ratio) for every ratio that prunes something; ratio 0 is the base network.

    A group that cuts before have left with nothing to lose gives no points.

    Raises:
        UserError: a group that no cut has touched is too narrow to lose a channel. It is refused,
            not called robust.
    """
    for group in ranking.groups.values():
        if any(ratios) and not ranking.already_cut and not ranking.units(group.name, max(ratios)):
            heads = f" in {group.heads} heads" if group.heads > 1 else ""
            lose = f"has {group.size} channels{heads} and can lose none"
            if len(removable(group)) > 1:
                reason = f"{group.name} {lose}: expected less, or the group in pruning.protect"
                raise UserError("pruning.min_keep", ranking.min_keep, reason)
            raise UserError(
                "pruning.protect",
                group.name,
                f"this group {lose}: name it in pruning.protect, or use fewer model.num_heads",
            )
    return [
        (name, ratio)
        for name in ranking.groups
        for ratio in dict.fromkeys(ratios)
        if ranking.units(name, ratio)
    ]


class Table:
    """Makes the rows of a table, one a point of the grid.

    Args:
        model: the base network.
        ranking: which channels go first.
        ratios: the grid; 0 is the base network and gives no row.

    Attributes:
        candidates: the different cuts of the grid: of a narrow group, several ratios are one cut.
    """

    def __init__(self, model: nn.Module, ranking: Ranking, ratios: Sequence[float]):
        self._points = grid_points(ranking, ratios)
        self._ranking, self._base = ranking, parameters(model)
        self.candidates: list[Candidate] = list(
            dict.fromkeys((name, ranking.units(name, ratio)) for name, ratio in self._points)
        )
        self.plans = {(name, count): ranking.plan({name: count}) for name, count in self.candidates}
        left = ParameterCounter(model)
        self._left = {candidate: left(plan) for candidate, plan in self.plans.items()}

    def csv(self, found: Mapping[Candidate, Values]) -> str:
        """The rows of what was found, as CSV, each group's ratios in the order they were asked."""
        lines: list[Sequence[Any]] = [COLUMNS]
        for name, ratio in self._points:
            group, removed = self._ranking.groups[name], self._ranking.units(name, ratio)
            values, left = found.get((name, removed)), self._left[name, removed]
            if values is None:
                continue
            lines.append(
                [
                    name,
                    group.kind,
                    group.size,
                    ratio,
                    removed,
                    left,
                    f"{memory_saving(left, self._base):.6f}",
                    values.images,
                    f"{values.top1:.4f}",
                    f"{values.top1_stderr:.4f}",
                    f"{values.drop:.4f}",
                    f"{values.drop_stderr:.4f}",
                    f"{values.loss:.6f}",
                    f"{values.kl:.6f}",
                    values.method,
                ]
            )
        return "".join(",".join(map(str, line)) + "\n" for line in lines)


def read_rows(csv: str) -> pd.DataFrame:
    """The table that a CSV's text holds."""
    return pd.read_csv(StringIO(csv))
