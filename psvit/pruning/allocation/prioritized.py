"""PrimeSVT's rule (arXiv 2606.03428): the largest groups first, each as far as accuracy allows."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import nn

from psvit.channels import Plan
from psvit.pruning.allocation.budget import Budget, parameters_saving
from psvit.pruning.allocation.decision import Decision, explain, fewest_units
from psvit.pruning.allocation.uniform import large_groups
from psvit.pruning.ranking import Ranking


def prioritized(
    model: nn.Module,
    ranking: Ranking,
    budget: Budget,
    top1: Callable[[Plan], float],
    ratios: Sequence[float],
    max_accuracy_drop: float,
) -> Decision:
    """Prune group by group, from the largest to the smallest, on the network pruned so far.

    For each group the ratios are tried from the largest down; the first that keeps the accuracy
    within ``max_accuracy_drop`` of the base network's is kept. It ends when the budget is met; the
    last group is cut no further than that takes. The abstract does not give the order of the
    ratios, nor what happens at the end; these choices are ours.

    Args:
        model: the base network.
        ranking: which channels go first in each group.
        budget: where to stop.
        top1: validation accuracy in percent of the network under a plan.
        ratios: the ratios to try.
        max_accuracy_drop: points of validation accuracy that may be lost in all.

    Returns:
        The decision; its plan saves less than the budget where the accuracy did not allow it. Its
        log has a row a candidate: group, ratio, top1, memory_saving, kept.
    """
    allowed = top1(Plan()) - max_accuracy_drop
    removed: dict[str, int] = {}
    tried = []
    for name in large_groups(model, ranking, 1.0):
        refused: set[int] = set()
        for ratio in sorted(ratios, reverse=True):
            candidate = {**removed, name: ranking.units(name, ratio)}
            if budget.met(ranking.plan(candidate)):
                counts = [count for count in ranking.removable(name) if count]
                candidate[name] = fewest_units(budget, ranking, candidate, name, counts)
            if candidate[name] in refused:
                # every ratio that meets the budget is reduced to the same cut
                continue
            plan = ranking.plan(candidate)
            accuracy = top1(plan)
            kept = accuracy >= allowed
            tried.append(
                {
                    "group": name,
                    "ratio": candidate[name] / ranking.groups[name].size,
                    "top1": accuracy,
                    "memory_saving": parameters_saving(model, plan),
                    "kept": kept,
                }
            )
            if kept:
                removed = candidate
                break
            refused.add(candidate[name])
        if budget.met(ranking.plan(removed)):
            break
    plan = ranking.plan(removed)
    return Decision(plan, explain(model, ranking, plan), log=pd.DataFrame(tried))
