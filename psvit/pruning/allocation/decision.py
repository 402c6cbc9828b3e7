"""What a policy gives: a plan, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from psvit.channels import Plan
from psvit.files import read_json, write_csv, write_json
from psvit.pruning.allocation.budget import Budget
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import ParameterCounter

# what a policy's prediction counts, in nats on the validation split: the increase of the
# cross-entropy, or the divergence from the base network's outputs
MEASURES = ("loss", "kl")


@dataclass
class Decision:
    """A plan and why.

    Attributes:
        plan: against the network that the policy was given.
        why: a row a group: ``group, kind, size, removed, ratio, predicted_cost,
            parameters_saved`` (alone); ``predicted_cost`` is NaN where the policy predicts none.
        measure: what ``predicted_cost`` counts, one of ``MEASURES``, or None.
        log: what the policy tried, a row each, or None.
    """

    plan: Plan
    why: pd.DataFrame
    measure: str | None = None
    log: pd.DataFrame | None = None

    @property
    def predicted(self) -> float:
        """Predicted cost of the whole plan, as if the groups did not interact."""
        return float(self.why.predicted_cost.sum())

    def save(self, folder: Path) -> None:
        """Write it to ``folder``, for ``load``."""
        write_csv(folder / "why.csv", self.why)
        if self.log is not None:
            write_csv(folder / "log.csv", self.log)
        write_json(folder / "decision.json", {"kept": dict(self.plan), "measure": self.measure})

    @staticmethod
    def load(folder: Path) -> "Decision":
        """Read what ``save`` wrote."""
        why, log = (
            pd.read_csv(path, float_precision="round_trip") if path.exists() else None
            for path in (folder / "why.csv", folder / "log.csv")
        )
        found = read_json(folder / "decision.json")
        return Decision(Plan(found["kept"]), why, found["measure"], log)


def explain(
    model: nn.Module,
    ranking: Ranking,
    plan: Plan,
    cost: Callable[[str, int], float] = lambda name, removed: float("nan"),
) -> pd.DataFrame:
    """The rows of ``Decision.why``; ``cost`` predicts that of a group's removed units."""
    left = ParameterCounter(model)
    rows = []
    for name, group in ranking.groups.items():
        kept = plan.get(name)
        removed = 0 if kept is None else group.size - len(kept)
        alone = Plan({} if kept is None else {name: kept})
        rows.append(
            {
                "group": name,
                "kind": group.kind,
                "size": group.size,
                "removed": removed,
                "ratio": removed / group.size,
                "predicted_cost": cost(name, removed),
                "parameters_saved": left(Plan()) - left(alone),
            }
        )
    return pd.DataFrame(rows)


# group -> (units removed, predicted cost in nats), from (0, 0) upward
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def cost_curves(sensitivity: pd.DataFrame, measure: str, base: float = 0.0) -> Curves:
    """Each group's measured cost against units removed.

    A smaller loss after pruning is noise of the validation split, and counts as none; a curve
    never falls.

    Args:
        sensitivity: the rows of ``measure_sensitivity``.
        measure: the column: ``loss`` or ``kl``.
        base: its value for the base network.
    """
    curves: Curves = {}
    for name, rows in sensitivity.groupby("group", sort=False):
        rows = rows.drop_duplicates("removed").sort_values("removed")
        increase = np.maximum.accumulate(np.maximum(rows[measure].to_numpy() - base, 0.0))
        curves[name] = (np.r_[0, rows.removed.to_numpy()], np.r_[0.0, increase])
    return curves


def predict(curves: Curves, name: str, removed: int) -> float:
    """A group's predicted cost, linear between the measured counts."""
    return float(np.interp(removed, *curves[name])) if name in curves else 0.0


def fewest_units(
    budget: Budget, ranking: Ranking, removed: Mapping[str, int], name: str, counts: Sequence[int]
) -> int:
    """The first of the ascending ``counts`` that meets the budget; the last where none does.

    Args:
        budget: what is to be saved.
        ranking: whose units are removed.
        removed: group -> units, beside those of ``name``.
        name: the group to choose for.
        counts: of its units.
    """
    low, high = 0, len(counts) - 1
    while low < high:
        middle = (low + high) // 2
        if budget.met(ranking.plan({**removed, name: counts[middle]})):
            high = middle
        else:
            low = middle + 1
    return counts[low]
