"""Ours: the least predicted divergence under a budget, solved exactly, corrected by measuring."""

import logging
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.pruning.allocation.budget import Budget, option, parameters_saving
from psvit.pruning.allocation.decision import Curves, Decision, cost_curves, explain
from psvit.pruning.allocation.knapsack import choose_levels
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import compose, prune

_log = logging.getLogger(__name__)

# numbers of units that a group may lose, for the knapsack to choose among
LEVELS = 24


def budgeted(
    model: nn.Module,
    budget: Budget,
    rank: Callable[[nn.Module], Ranking],
    measure: Callable[[nn.Module, Ranking], pd.DataFrame],
    mend: Callable[[nn.Module, Plan], nn.Module],
    divergence: Callable[[nn.Module], float],
    max_steps: int,
    before: float = 0.0,
) -> Decision:
    """The plan with the least divergence from the base network that meets the budget.

    A sensitivity measured on the whole network, each group alone, knows nothing of groups that
    only matter together. So the way to the budget is tried in one step, then in two, and so on:
    each step measures every group of the network as it stands (cut and mended so far), solves the
    knapsack over that table for its share of the saving, cuts, and mends. It ends when a further
    step brings the result no closer to the base network.

    Args:
        model: the network to cut: the base network, or in a later round what became of it.
        budget: what is to be saved.
        rank: network -> which of its channels go first.
        measure: network, ranking -> sensitivity rows, with ``kl`` against the base network.
        mend: pruned network, its plan against the base -> the network after recovery.
        divergence: network -> its ``kl`` against the base network.
        max_steps: the most steps to try.
        before: ``model``'s own divergence from the base network.

    Returns:
        The decision; its log has a row a step: ``steps``, ``step``, ``predicted_kl`` of the step,
        ``kl`` measured behind it, ``memory_saving``.

    Raises:
        UserError: the budget cannot be met with the ratios that are measured.
    """
    first = rank(model)
    table = measure(model, first)
    log: list[dict] = []
    best: tuple[float, Plan, dict[str, float]] = math.inf, Plan(), {}
    for steps in range(1, max_steps + 1):
        plan, network, costs = Plan(), model, dict.fromkeys(first.groups, 0.0)
        try:
            for step in range(1, steps + 1):
                if step == 1:
                    ranking, rows, own = first, table, before
                else:
                    ranking = rank(network)
                    rows, own = measure(network, ranking), log[-1]["kl"]
                curves = cost_curves(rows, "kl", own)
                cut, predicted = _solve(budget, model, plan, ranking, curves, step / steps)
                for name, cost in predicted.items():
                    costs[name] += cost
                plan = compose(model, plan, cut)
                network = mend(prune(model, plan), plan)
                log.append(
                    {
                        "steps": steps,
                        "step": step,
                        "predicted_kl": sum(predicted.values()),
                        "kl": divergence(network),
                        "memory_saving": parameters_saving(model, plan),
                    }
                )
        except UserError:
            # more steps have led to a network that cannot go on: fewer have not
            if steps == 1:
                raise
            break
        # nor where it is not a number
        if steps > 1 and not log[-1]["kl"] < best[0]:
            break
        best = log[-1]["kl"], plan, costs
    _, plan, costs = best
    why = explain(model, first, plan, lambda name, _: costs[name])
    return Decision(plan, why, "kl", pd.DataFrame(log))


def _solve(
    budget: Budget, model: nn.Module, plan: Plan, ranking: Ranking, curves: Curves, share: float
) -> tuple[Plan, dict[str, float]]:
    """The cheapest cut behind ``plan`` that goes ``share`` of the way; each group's cost."""
    levels, cost = {}, {}
    for name, (measured, costs) in curves.items():
        levels[name] = _levels(ranking.removable(name), measured)
        # monotone between the measured counts, as the curve is
        cost[name] = PchipInterpolator(measured, costs)(levels[name])
    goals: dict[str, float] = {}
    saved: dict[str, dict[str, np.ndarray]] = {}
    for resource, target in budget.targets.items():
        if resource not in ("memory", "parameters"):
            # networks have to be made for it, and run
            _log.info("measuring what each group's cuts save of %s", resource)
        now = budget.spent(resource, plan)
        goals[resource] = now - budget.base[resource] * (1.0 - target * share)
        saved[resource] = {}
        for name, (measured, _) in curves.items():
            left = [
                budget.spent(resource, compose(model, plan, ranking.plan({name: int(count)})))
                for count in measured
            ]
            saved[resource][name] = np.interp(levels[name], measured, now - np.array(left))
    wanted = budget.scaled(share)
    for _ in range(100):
        try:
            chosen = choose_levels(cost, saved, goals)
        except ValueError:
            break
        cut = ranking.plan({name: int(levels[name][level]) for name, level in chosen.items()})
        reached = compose(model, plan, cut)
        if wanted.met(reached):
            return cut, {name: float(cost[name][level]) for name, level in chosen.items()}
        # groups that share a layer save less together than the sum of what each saves alone
        for resource, target in wanted.targets.items():
            short = budget.spent(resource, reached) - budget.base[resource] * (1.0 - target)
            if short > 0:
                predicted = sum(saved[resource][name][level] for name, level in chosen.items())
                # more than this choice was to save, and than the solver's tolerance of 1e-6, or it
                # would be chosen again
                goals[resource] = max(goals[resource] + short, predicted * (1.0 + 1e-5))
    most = ranking.plan({name: int(measured[-1]) for name, (measured, _) in curves.items()})
    resource, target = budget.scarcest(compose(model, plan, most))
    raise UserError(
        option(resource),
        target,
        f"of {resource} cannot be reached by cutting each group by one of pruning.ratios: "
        "raise them",
    )


def _levels(removable: list[int], measured: np.ndarray) -> np.ndarray:
    """The measured counts and others between them, ascending, about ``LEVELS`` in all."""
    allowed = np.array([count for count in removable if count <= measured[-1]])
    spread = np.linspace(0, len(allowed) - 1, LEVELS).round().astype(int)
    return np.unique(np.r_[0, allowed[spread], measured])
