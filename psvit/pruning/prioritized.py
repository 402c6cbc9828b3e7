"""PrimeSVT's rule (arXiv 2606.03428): the largest groups first, each as far as accuracy allows."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import nn

from psvit.channels import Plan
from psvit.measure.footprint import memory_saving, parameters
from psvit.pruning.allocation import large_groups
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import pruned_parameters


def prioritized(
    model: nn.Module,
    ranking: Ranking,
    top1: Callable[[Plan], float],
    ratios: Sequence[float],
    target: float,
    max_accuracy_drop: float,
) -> tuple[Plan, pd.DataFrame]:
    """Prune group by group, from the largest to the smallest, on the network pruned so far.

    For each group the ratios are tried from the largest down; the first that keeps the accuracy
    within ``max_accuracy_drop`` of the base network's is kept. It ends when ``target`` is met; the
    last group is cut no further than that takes. The abstract does not give the order of the
    ratios, nor what happens at the end; these choices are ours.

    Args:
        model: the base network.
        ranking: which channels go first in each group.
        top1: validation accuracy in percent of the network under a plan.
        ratios: the ratios to try.
        target: memory saving to stop at, a fraction.
        max_accuracy_drop: points of validation accuracy that may be lost in all.

    Returns:
        The plan, which saves less than ``target`` where the accuracy did not allow it, and one row
        a candidate: group, ratio, top1, memory_saving, kept.
    """
    base, allowed = parameters(model), top1(Plan()) - max_accuracy_drop
    removed: dict[str, int] = {}
    tried = []

    def saving(counts: dict[str, int]) -> float:
        return memory_saving(pruned_parameters(model, ranking.plan(counts)), base)

    for name in large_groups(model, ranking, 1.0):
        for ratio in sorted(ratios, reverse=True):
            candidate = {**removed, name: ranking.units(name, ratio)}
            if saving(candidate) > target:
                candidate[name] = next(
                    count
                    for count in ranking.removable(name)
                    if saving({**removed, name: count}) >= target
                )
            accuracy = top1(ranking.plan(candidate))
            kept = accuracy >= allowed
            tried.append(
                {
                    "group": name,
                    "ratio": candidate[name] / ranking.groups[name].size,
                    "top1": accuracy,
                    "memory_saving": saving(candidate),
                    "kept": kept,
                }
            )
            if kept:
                removed = candidate
                break
        if saving(removed) >= target:
            break
    return ranking.plan(removed), pd.DataFrame(tried)
