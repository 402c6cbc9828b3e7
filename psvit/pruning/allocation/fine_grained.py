"""Fine-grained channel-wise pruning (PSViT, step 3): a ratio for each group."""

import heapq

import pandas as pd
from torch import nn

from psvit.pruning.allocation.budget import Budget
from psvit.pruning.allocation.decision import (
    Curves,
    Decision,
    cost_curves,
    explain,
    fewest_units,
    predict,
)
from psvit.pruning.allocation.uniform import large_groups
from psvit.pruning.ranking import Ranking


def fine_grained(
    model: nn.Module,
    ranking: Ranking,
    budget: Budget,
    sensitivity: pd.DataFrame,
    base_loss: float,
    large_share: float,
) -> Decision:
    """First a uniform ratio on the large groups, then further cuts where they are tolerated best.

    The further cuts are steps of the grid, each time the one with the least predicted loss for
    what it saves, until the budget is met; the last step is cut short. Of the uniform ratios of
    the grid the one whose result has the smallest predicted loss is taken. The paper does not say
    how it weighs the two steps (arXiv 2606.03257, abstract); this choice is ours.

    Args:
        model: the base network.
        ranking: which channels go first in each group.
        budget: what is to be saved.
        sensitivity: the rows of ``measure_sensitivity``.
        base_loss: validation loss of the base network in nats.
        large_share: see ``large_groups``.

    Raises:
        UserError: the budget cannot be met with the ratios that were measured.
    """
    budget.check_reachable(ranking, float(sensitivity.ratio.max()))
    curves = cost_curves(sensitivity, "loss", base_loss)
    measured = {(row.group, row.removed): row.loss for row in sensitivity.itertuples()}
    large = large_groups(model, ranking, large_share)
    candidates = []
    for ratio in [0.0, *sorted(sensitivity.ratio.unique())]:
        removed = {name: ranking.units(name, ratio) for name in large}
        if budget.progress(ranking.plan(removed)) > 1.0:
            break
        candidates.append(_fill(ranking, budget, curves, measured, removed))
    best = min(
        candidates[1:] or candidates,
        key=lambda removed: sum(predict(curves, *item) for item in removed.items()),
    )
    plan = ranking.plan(best)
    why = explain(model, ranking, plan, lambda name, units: predict(curves, name, units))
    return Decision(plan, why, "loss")


def _fill(
    ranking: Ranking,
    budget: Budget,
    curves: Curves,
    measured: dict[tuple[str, int], float],
    removed: dict[str, int],
) -> dict[str, int]:
    """Cut further where it costs least until the budget is met; of equals, the lowest loss."""
    removed = dict(removed)
    queue: list[tuple[float, float, str, int]] = []

    def offer(name: str) -> None:
        levels, _ = curves[name]
        now = removed.get(name, 0)
        further = levels[levels > now]
        if len(further):
            level = int(further[0])
            saved = _alone(ranking, budget, name, level) - _alone(ranking, budget, name, now)
            cost = predict(curves, name, level) - predict(curves, name, now)
            rate = cost / max(saved, 1e-12)
            heapq.heappush(queue, (rate, measured[name, level], name, level))

    for name in curves:
        offer(name)
    while queue and not budget.met(ranking.plan(removed)):
        _, _, name, level = heapq.heappop(queue)
        counts = [n for n in ranking.removable(name) if removed.get(name, 0) < n <= level]
        removed[name] = fewest_units(budget, ranking, removed, name, counts)
        offer(name)
    return removed


def _alone(ranking: Ranking, budget: Budget, name: str, units: int) -> float:
    """How far towards the budget a group alone goes."""
    return budget.progress(ranking.plan({name: units}))
