"""A limit on the accuracy lost, for policies that know only what is to be saved."""

from collections.abc import Callable

import pandas as pd

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.pruning.allocation.budget import Budget
from psvit.pruning.allocation.decision import Decision

STEPS = 6


def within_accuracy(
    solve: Callable[[Budget], Decision],
    budget: Budget,
    top1: Callable[[Plan], float],
    max_accuracy_drop: float,
) -> Decision:
    """The decision that saves most, up to the budget, while the accuracy holds.

    The targets are scaled together, by bisection (a 64th of the way is the finest step).

    Args:
        solve: the policy.
        budget: the most to save.
        top1: validation accuracy in percent of the network under a plan.
        max_accuracy_drop: points of validation accuracy that may be lost.

    Returns:
        The decision; its log has a row a trial: share of the targets, top1, kept.

    Raises:
        UserError: not even the smallest step stays within the limit, or the policy can save none.
    """
    allowed = top1(Plan()) - max_accuracy_drop
    low, high, share = 0.0, 1.0, 1.0
    best: Decision | None = None
    tried: list[dict[str, float | bool]] = []
    for step in range(STEPS + 1):
        try:
            decision = solve(budget.scaled(share))
        except UserError:
            # as much as this cannot be saved at all
            if step == STEPS and not tried:
                raise
            high, share = share, (low + share) / 2
            continue
        accuracy = top1(decision.plan)
        kept = accuracy >= allowed
        tried.append({"share": share, "top1": accuracy, "kept": kept})
        if kept:
            low, best = share, decision
        else:
            high = share
        if low == 1.0:
            break
        share = (low + high) / 2
    if best is None:
        lost = allowed + max_accuracy_drop - max(trial["top1"] for trial in tried)
        raise UserError(
            "pruning.max_accuracy_drop",
            max_accuracy_drop,
            f"no cut that was tried stays within it; the best lost {lost:.2f} points",
        )
    best.log = pd.DataFrame(tried)
    return best
