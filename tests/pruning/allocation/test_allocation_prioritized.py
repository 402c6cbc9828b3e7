"""PrimeSVT's rule on made accuracies, where what it must do can be said by hand."""

import pytest

from psvit.measure.footprint import parameters
from psvit.pruning import pruned_parameters
from psvit.pruning.allocation import Budget, prioritized
from psvit.pruning.ranking import Ranking


def saving(network, plan):
    return 1 - pruned_parameters(network, plan) / parameters(network)


@pytest.fixture
def ranking(network):
    return Ranking(network, kinds=["hidden"])


def test_largest_group_goes_first_by_the_largest_ratio(network, ranking):
    alone = {n: saving(network, ranking.plan({n: ranking.units(n, 0.5)})) for n in ranking.groups}
    largest = max(alone, key=alone.get)
    budget = Budget(network, {"memory": alone[largest]})
    found = prioritized(network, ranking, budget, lambda _: 90.0, [0.25, 0.5], 1.0)
    plan, tried = found.plan, found.log
    assert list(plan) == [largest]
    assert tried.kept.tolist() == [True]
    assert saving(network, plan) == pytest.approx(alone[largest])


def test_a_candidate_is_kept_only_while_the_accuracy_holds(network, ranking):
    # every removed channel of an MLP costs a point, other channels nothing
    groups = ranking.groups

    def top1(plan):
        return 90.0 - sum(groups[n].size - len(kept) for n, kept in plan.items() if "mlp" in n)

    budget = Budget(network, {"memory": 0.9})
    found = prioritized(network, ranking, budget, top1, [0.1, 0.5], 20.0)
    plan, tried = found.plan, found.log
    assert top1(plan) >= 70.0
    # all others are cut by the larger ratio
    for name, group in groups.items():
        if "mlp" not in name:
            assert len(plan[name]) == group.size - ranking.units(name, 0.5)
    # and every MLP that was left alone would have broken the constraint
    for name in set(groups) - set(plan):
        assert top1(plan) - ranking.units(name, 0.1) < 70.0
    assert (tried.top1[~tried.kept] < 70.0).all() and (tried.top1[tried.kept] >= 70.0).all()


def test_a_cut_that_several_ratios_come_to_is_tried_once(network, ranking):
    tried = []

    def top1(plan):
        tried.append(dict(plan))
        return 90.0 - 50.0 * bool(plan)

    # of no group a unit may go, and the largest three ratios of every group save enough
    ratios = [0.01, 0.4, 0.5, 0.6]
    least = min(saving(network, ranking.plan({n: ranking.units(n, 0.4)})) for n in ranking.groups)
    budget = Budget(network, {"memory": least})
    found = prioritized(network, ranking, budget, top1, ratios, 1.0)
    assert not found.plan and not found.log.kept.any()
    # beside the base network, a cut that meets the budget and a smaller one of each group
    assert len(tried) == 1 + len(found.log)
    assert not any(cut in tried[:index] for index, cut in enumerate(tried))
    assert found.log.group.value_counts().between(1, 2).all()
    assert set(found.log.group) == set(ranking.groups)


@pytest.mark.parametrize("target", [0.02, 0.1, 0.2])
def test_stops_at_the_target_and_not_a_channel_beyond(network, ranking, target):
    budget = Budget(network, {"memory": target})
    found = prioritized(network, ranking, budget, lambda _: 90.0, [0.3, 0.7], 1.0)
    plan, tried = found.plan, found.log
    assert saving(network, plan) >= target
    last = tried.group.iloc[-1]
    counts = {n: ranking.groups[n].size - len(kept) for n, kept in plan.items()}
    smaller = [count for count in ranking.removable(last) if count < counts[last]][-1]
    assert saving(network, ranking.plan({**counts, last: smaller})) < target
