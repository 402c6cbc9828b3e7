"""A limit on the accuracy lost, on made accuracies."""

import pandas as pd
import pytest

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.pruning.allocation import Budget, within_accuracy
from psvit.pruning.allocation.decision import Decision


class Share(Plan):
    """A plan that remembers how far towards the target it goes."""

    def __init__(self, share):
        super().__init__({"g": [0]})
        self.share = share


def search(network, limit, drop_at, most=1.0):
    """Accuracy falls by ``drop_at(share)`` points, of 90; no more than ``most`` can be saved."""
    budget = Budget(network, {"memory": 0.5})
    solved = []

    def solve(scaled):
        share = scaled.targets["memory"] / 0.5
        solved.append(share)
        if share > most:
            raise UserError("pruning.target_memory_saving", share, "cannot be reached")
        return Decision(Share(share), pd.DataFrame())

    def top1(plan):
        return 90.0 - drop_at(plan.share) if plan else 90.0

    return within_accuracy(solve, budget, top1, limit), solved


def test_the_whole_target_where_the_accuracy_allows_it(network):
    found, solved = search(network, 1.0, lambda share: 1.0)
    assert solved == [1.0] and found.plan.share == 1.0
    assert found.log.kept.tolist() == [True]


@pytest.mark.parametrize("limit", [0.3, 1.0, 2.7])
def test_the_most_that_the_accuracy_allows(network, limit):
    found, _ = search(network, limit, lambda share: 3.0 * share)
    assert 3.0 * found.plan.share <= limit
    # to a 64th of the way
    assert 3.0 * (found.plan.share + 1 / 64) > limit
    assert (found.log.top1[found.log.kept] >= 90.0 - limit).all()
    assert (found.log.top1[~found.log.kept] < 90.0 - limit).all()


def test_no_cut_that_is_allowed(network):
    with pytest.raises(UserError, match=r"^pruning\.max_accuracy_drop=0\.5: .* lost 2\.00 points"):
        search(network, 0.5, lambda share: 2.0)


def test_what_cannot_be_saved_is_more_than_the_most(network):
    found, _ = search(network, 1.0, lambda share: share, most=0.4)
    assert 0.4 - 1 / 64 < found.plan.share <= 0.4
    with pytest.raises(UserError, match="cannot be reached"):
        search(network, 1.0, lambda share: share, most=0.0)
