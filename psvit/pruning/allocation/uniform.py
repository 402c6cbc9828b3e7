"""Uniform channel-wise filter pruning (PSViT, step 1): one ratio for many groups."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from psvit.channels import Plan
from psvit.pruning.allocation.budget import Budget
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import ParameterCounter


def uniform(ranking: Ranking, ratio: float, names: Sequence[str] | None = None) -> Plan:
    """The plan that cuts each of the groups ``names`` (all where None) by ``ratio``."""
    chosen = ranking.groups if names is None else names
    return ranking.plan({name: ranking.units(name, ratio) for name in chosen})


def uniform_at(
    ranking: Ranking, budget: Budget, names: Sequence[str] | None = None
) -> tuple[float, Plan]:
    """The smallest single ratio, and its plan, that meets the budget.

    Raises:
        UserError: no ratio saves as much.
    """
    budget.check_reachable(ranking, 1.0, names)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if budget.met(uniform(ranking, middle, names)):
            high = middle
        else:
            low = middle
    return high, uniform(ranking, high, names)


def large_groups(model: nn.Module, ranking: Ranking, share: float) -> list[str]:
    """The largest groups, by parameters, that together hold ``share`` of what all groups hold.

    A group's size is what half of it would save.
    """
    left = ParameterCounter(model)
    held = {name: left(Plan()) - left(uniform(ranking, 0.5, [name])) for name in ranking.groups}
    ordered = sorted(held, key=lambda name: (-held[name], name))
    cumulative = np.cumsum([held[name] for name in ordered])
    count = int(np.searchsorted(cumulative, share * cumulative[-1])) + 1
    return ordered[:count]
