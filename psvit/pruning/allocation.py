"""Policies: how much of each channel group goes. Each returns a plan; surgery applies it."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.measure.footprint import memory_saving, parameters
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import pruned_parameters

TARGET = "pruning.target_memory_saving"


def uniform(ranking: Ranking, ratio: float, names: Sequence[str] | None = None) -> Plan:
    """Uniform channel-wise filter pruning (PSViT, step 1): one ratio for the groups ``names``."""
    chosen = ranking.groups if names is None else names
    return ranking.plan({name: ranking.units(name, ratio) for name in chosen})


def uniform_at(model: nn.Module, ranking: Ranking, target: float) -> tuple[float, Plan]:
    """The smallest single ratio, and its plan, that saves at least ``target`` of the parameters.

    Raises:
        UserError: no ratio saves as much.
    """
    check_reachable(model, ranking, target, 1.0)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if _saving(model, uniform(ranking, middle)) >= target:
            high = middle
        else:
            low = middle
    return high, uniform(ranking, high)


def check_reachable(model: nn.Module, ranking: Ranking, target: float, max_ratio: float) -> None:
    """Raise a UserError if cutting every group by ``max_ratio`` saves less than ``target``."""
    most = _saving(model, uniform(ranking, max_ratio))
    if target > most:
        raise UserError(
            TARGET,
            target,
            f"cannot be reached: cutting every group by the largest ratio, {max_ratio:g}, saves "
            f"{most:.4f}; "
            f"lower the target, raise pruning.ratios, or protect fewer groups",
        )


def large_groups(model: nn.Module, ranking: Ranking, share: float) -> list[str]:
    """The largest groups, by parameters, that together hold ``share`` of what all groups hold.

    A group's size is what half of it would save.
    """
    base = parameters(model)
    held = {
        name: base - pruned_parameters(model, uniform(ranking, 0.5, [name]))
        for name in ranking.groups
    }
    ordered = sorted(held, key=lambda name: (-held[name], name))
    cumulative = np.cumsum([held[name] for name in ordered])
    count = int(np.searchsorted(cumulative, share * cumulative[-1])) + 1
    return ordered[:count]


@dataclass
class Allocation:
    """A plan and why."""

    plan: Plan
    # increase of the validation loss, in nats, summed over the groups as if they did not interact
    predicted_loss: float
    # one row a group: ratio, removed units, predicted loss increase, parameters saved alone
    why: pd.DataFrame


def fine_grained(
    model: nn.Module,
    ranking: Ranking,
    sensitivity: pd.DataFrame,
    base_loss: float,
    target: float,
    large_share: float,
) -> Allocation:
    """Fine-grained channel-wise pruning (PSViT, step 3): a ratio for each group.

    First a uniform ratio of the grid on the large groups, then further steps of the grid on the
    groups that tolerate them best: the least predicted loss for each parameter saved, until the
    memory saving is met; the last step is cut short. Of the uniform ratios the one whose result
    has the smallest predicted loss is taken. The paper does not say how it weighs the two steps
    (arXiv 2606.03257, abstract); this choice is ours.

    Args:
        model: the base network.
        ranking: which channels go first in each group.
        sensitivity: the rows of ``measure_sensitivity``.
        base_loss: validation loss of the base network in nats.
        target: memory saving to meet, a fraction.
        large_share: see ``large_groups``.

    Raises:
        UserError: the target cannot be met with the ratios that were measured.
    """
    check_reachable(model, ranking, target, float(sensitivity.ratio.max()))
    curves = loss_curves(sensitivity, base_loss)
    measured = {(row.group, row.removed): row.loss for row in sensitivity.itertuples()}
    large = large_groups(model, ranking, large_share)
    candidates = []
    for ratio in [0.0, *sorted(sensitivity.ratio.unique())]:
        removed = {name: ranking.units(name, ratio) for name in large}
        if _saving(model, ranking.plan(removed)) > target:
            break
        candidates.append(_fill(model, ranking, curves, measured, removed, target))
    best = min(candidates[1:] or candidates, key=lambda removed: _predict(curves, removed))
    return Allocation(
        ranking.plan(best), _predict(curves, best), _explain(model, ranking, curves, best)
    )


# group -> (units removed, predicted increase of the loss in nats), from (0, 0) upward
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def loss_curves(sensitivity: pd.DataFrame, base_loss: float) -> Curves:
    """Each group's increase of the loss against units removed.

    A smaller loss after pruning is noise of the validation split, and counts as none; a curve
    never falls.
    """
    curves: Curves = {}
    for name, rows in sensitivity.groupby("group", sort=False):
        rows = rows.drop_duplicates("removed").sort_values("removed")
        increase = np.maximum.accumulate(np.maximum(rows.loss.to_numpy() - base_loss, 0.0))
        curves[name] = (np.r_[0, rows.removed.to_numpy()], np.r_[0.0, increase])
    return curves


def _fill(
    model: nn.Module,
    ranking: Ranking,
    curves: Curves,
    measured: dict[tuple[str, int], float],
    removed: dict[str, int],
    target: float,
) -> dict[str, int]:
    """Cut further where it costs least until ``target`` is met; of equals, the lowest loss."""
    removed = dict(removed)
    base = parameters(model)
    queue: list[tuple[float, float, str, int]] = []

    def offer(name: str) -> None:
        levels, loss = curves[name]
        now = removed.get(name, 0)
        further = levels[levels > now]
        if len(further):
            saved = _alone(model, ranking, name, now) - _alone(
                model, ranking, name, int(further[0])
            )
            cost = np.interp(further[0], levels, loss) - np.interp(now, levels, loss)
            level = int(further[0])
            heapq.heappush(queue, (float(cost) / max(saved, 1), measured[name, level], name, level))

    for name in curves:
        offer(name)
    while _saving(model, ranking.plan(removed)) < target:
        _, _, name, level = heapq.heappop(queue)
        removed[name] = _shortest_step(
            [n for n in ranking.removable(name) if removed.get(name, 0) < n <= level],
            lambda units, name=name: (
                memory_saving(
                    pruned_parameters(model, ranking.plan({**removed, name: units})), base
                )
                >= target
            ),
        )
        offer(name)
    return removed


def _shortest_step(steps: list[int], enough: Callable[[int], bool]) -> int:
    """The first of the ascending ``steps`` that is enough; the last where none is."""
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if enough(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return steps[low]


def _alone(model: nn.Module, ranking: Ranking, name: str, units: int) -> int:
    return pruned_parameters(model, ranking.plan({name: units}))


def _saving(model: nn.Module, plan: Plan) -> float:
    return memory_saving(pruned_parameters(model, plan), parameters(model))


def _predict(curves: Curves, removed: dict[str, int]) -> float:
    return float(sum(np.interp(units, *curves[name]) for name, units in removed.items()))


def _explain(
    model: nn.Module, ranking: Ranking, curves: Curves, removed: dict[str, int]
) -> pd.DataFrame:
    base = parameters(model)
    return pd.DataFrame(
        [
            {
                "group": name,
                "kind": group.kind,
                "size": group.size,
                "removed": removed.get(name, 0),
                "ratio": removed.get(name, 0) / group.size,
                "predicted_loss": _predict(curves, {name: removed.get(name, 0)}),
                "parameters_saved": base - _alone(model, ranking, name, removed.get(name, 0)),
            }
            for name, group in ranking.groups.items()
        ]
    )
