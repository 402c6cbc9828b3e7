"""Ours: the least predicted divergence under a memory budget, solved exactly, in rounds."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.measure.footprint import memory_saving, parameters
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import compose, prune, pruned_parameters

TARGET = "pruning.target_memory_saving"


def choose_levels(
    cost: dict[str, np.ndarray], saved: dict[str, np.ndarray], target: float
) -> dict[str, int]:
    """One level for each group, with the least total cost that saves at least ``target``.

    The multiple-choice knapsack, solved to optimality (HiGHS, through scipy). Level 0 is the
    group as it is.

    Args:
        cost: for each group the predicted cost of its levels.
        saved: for each group what its levels save, in the unit of ``target``.
        target: what is to be saved in all.

    Raises:
        ValueError: the largest levels together save less than ``target``.
    """
    names = list(cost)
    sizes = [len(cost[name]) for name in names]
    owner = np.repeat(np.arange(len(names)), sizes)
    one_each = (owner == np.arange(len(names))[:, None]).astype(float)
    costs = np.concatenate([cost[name] for name in names])
    savings = np.concatenate([saved[name] for name in names]).astype(float)
    # of choices that cost the same, the one that cuts least: worth less than any measured digit
    least_cut = 1e-6 * savings / max(savings.sum(), 1.0)
    result = milp(
        # scaled, as the solver takes differences below 1e-7 for none
        1e5 * (costs + least_cut),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(savings[None], target, np.inf),
        ],
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise ValueError(f"no choice of levels saves {target}")
    chosen = result.x.round().astype(bool)
    return {name: int(np.flatnonzero(chosen[owner == i])[0]) for i, name in enumerate(names)}


def budgeted(
    model: nn.Module,
    rank: Callable[[nn.Module], Ranking],
    measure: Callable[[nn.Module, Ranking, int], pd.DataFrame],
    mend: Callable[[nn.Module, Plan], nn.Module],
    target: float,
    rounds: int,
) -> tuple[Plan, pd.DataFrame]:
    """The plan with the least divergence from the base network that saves ``target``.

    Each round measures every group of the network as it stands (cut and mended so far), solves
    the knapsack over that table for its share of the saving, and cuts and mends again. A
    sensitivity measured on the whole network alone knows nothing of groups that only matter
    together; the next round's table does.

    Args:
        model: the base network.
        rank: network -> which of its channels go first.
        measure: network, ranking, round -> sensitivity rows, with ``kl`` against the base network.
        mend: pruned network, its plan against the base -> the network after recovery.
        target: memory saving, a fraction.
        rounds: how often to measure and solve.

    Returns:
        The plan against the base network, and one row a round: saving, predicted divergence.

    Raises:
        UserError: the target cannot be met with the ratios that are measured.
    """
    base = parameters(model)
    plan, network = Plan(), model
    log = []
    for number in range(1, rounds + 1):
        ranking = rank(network)
        table = measure(network, ranking, number)
        wanted = base * (1.0 - target * number / rounds)
        step, predicted = _solve_round(network, ranking, table, wanted)
        plan = compose(model, plan, step)
        log.append(
            {
                "round": number,
                "predicted_kl": predicted,
                "memory_saving": memory_saving(pruned_parameters(model, plan), base),
            }
        )
        if number < rounds:
            network = mend(prune(model, plan), plan)
    return plan, pd.DataFrame(log)


def _solve_round(
    network: nn.Module, ranking: Ranking, table: pd.DataFrame, wanted: float
) -> tuple[Plan, float]:
    """The cheapest cut of ``network`` that leaves at most ``wanted`` parameters."""
    now = parameters(network)
    levels, cost, saved = {}, {}, {}
    for name, rows in table.groupby("group", sort=False):
        rows = rows.drop_duplicates("removed").sort_values("removed")
        levels[name] = np.r_[0, rows.removed.to_numpy()]
        # more channels gone cannot bring the outputs closer: what looks so is noise
        cost[name] = np.maximum.accumulate(np.r_[0.0, rows.kl.to_numpy()])
        saved[name] = np.r_[0, now - rows.parameters.to_numpy()]
    goal = now - wanted
    while True:
        try:
            chosen = choose_levels(cost, saved, goal)
        except ValueError as error:
            raise UserError(
                TARGET,
                f"{1.0 - wanted / now:.4f}",
                "cannot be reached in a round: raise pruning.ratios or pruning.rounds",
            ) from error
        plan = ranking.plan({name: int(levels[name][level]) for name, level in chosen.items()})
        short = pruned_parameters(network, plan) - wanted
        if short <= 0:
            return plan, float(sum(cost[name][level] for name, level in chosen.items()))
        # groups that share a layer save less together than the sum of what each saves alone
        goal += short
