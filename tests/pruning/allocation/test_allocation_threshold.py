"""Global thresholds on made scores, and what counts as one structure."""

import pytest
import torch

from psvit.errors import UserError
from psvit.measure.footprint import parameters
from psvit.pruning import pruned_parameters
from psvit.pruning.allocation import Budget, global_threshold
from psvit.pruning.allocation.threshold import structure
from psvit.pruning.ranking import Ranking


@pytest.fixture
def ranking(network):
    return Ranking(network, kinds=["hidden"])


def saving(network, plan):
    return 1 - pruned_parameters(network, plan) / parameters(network)


def removed(ranking, plan):
    return {
        name: group.size - len(plan.get(name, range(group.size)))
        for name, group in ranking.groups.items()
    }


def test_the_least_important_units_go_wherever_they_are(network, ranking):
    poor = "stage4.block1.mlp.hidden"
    for name in ranking.scores:
        ranking.scores[name] = torch.linspace(1.0, 2.0, ranking.groups[name].size).double()
    # half of one group's units matter less than any other
    half = ranking.groups[poor].size // 2
    ranking.scores[poor][:half] = 0.5
    target = saving(network, ranking.plan({poor: half}))
    found = global_threshold(network, ranking, Budget(network, {"memory": target}), "none", False)
    counts = removed(ranking, found.plan)
    assert counts.pop(poor) == half and not any(counts.values())
    assert set(range(half)).isdisjoint(found.plan[poor])


def test_groups_of_other_scales_compare_after_normalising(network, ranking):
    for number, name in enumerate(ranking.scores):
        size = ranking.groups[name].size
        ranking.scores[name] = 10.0**number * torch.linspace(1.0, 2.0, size).double()
    budget = Budget(network, {"memory": 0.2})
    raw = removed(ranking, global_threshold(network, ranking, budget, "none", False).plan)
    # the first groups are emptied before the others are touched
    names = list(ranking.groups)
    assert raw[names[0]] == ranking.groups[names[0]].size - 1 and raw[names[-1]] == 0
    for normalize in ("mean", "max"):
        plan = global_threshold(network, ranking, budget, normalize, False).plan
        shares = [n / ranking.groups[name].size for name, n in removed(ranking, plan).items()]
        # the same scores but for the scale: the same share, to a unit of the narrowest group
        assert max(shares) - min(shares) <= 1 / 16
        assert 0.2 <= saving(network, plan) < 0.22


def test_a_threshold_for_each_structure(network, ranking):
    """Scores of other scales between structures do not matter where each has its threshold."""
    scale = {}
    for name, group in ranking.groups.items():
        kind = structure(network, group)
        scale.setdefault(kind, 100.0 ** len(scale))
        values = torch.linspace(1.0, 2.0, group.size).double()
        ranking.scores[name] = scale[kind] * values
    assert len(scale) > 2
    budget = Budget(network, {"memory": 0.2})
    plan = global_threshold(network, ranking, budget, "none", True).plan
    shares = [n / ranking.groups[name].size for name, n in removed(ranking, plan).items()]
    assert max(shares) - min(shares) <= 1 / 16 and min(shares) > 0
    assert 0.2 <= saving(network, plan) < 0.22


def test_structures(network):
    groups = network.channel_groups()

    def of(name):
        return structure(network, groups[name])

    assert of("stage3.block1.mlp.hidden") == of("stage4.block1.mlp.hidden")
    # convolutions of 3x3 and of 1x1
    assert of("stage2.block1.mlp.hidden") != of("stage3.block1.mlp.hidden")
    assert of("stage3.block1.attn.value") != of("stage3.block1.attn.query_key")


def test_cuts_stay_even_over_heads_and_never_take_all(network):
    ranking = Ranking(network, kinds=["query_key", "value"])
    generator = torch.Generator().manual_seed(0)
    for name, scores in ranking.scores.items():
        ranking.scores[name] = torch.rand(len(scores), generator=generator).double()
    plan = global_threshold(network, ranking, Budget(network, {"memory": 0.1}), "mean", False).plan
    for name, kept in plan.items():
        group = ranking.groups[name]
        each = group.size // group.heads
        counts = [sum(unit // each == head for unit in kept) for head in range(group.heads)]
        assert len(set(counts)) == 1 and counts[0] >= 1


def test_an_unreachable_budget(network, ranking):
    with pytest.raises(UserError, match=r"^pruning\.target_memory_saving=0\.99"):
        global_threshold(network, ranking, Budget(network, {"memory": 0.99}), "mean", False)


def test_an_unreachable_budget_names_what_is_short(network, ranking):
    # a fifth of the memory can go, of the operations no more than a tenth
    budget = Budget(
        network, {"memory": 0.2, "macs": 0.15}, {"macs": lambda plan: 1.0 - 0.1 * bool(plan)}
    )
    with pytest.raises(UserError, match=r"^pruning\.target_saving=0\.15: .* of macs"):
        global_threshold(network, ranking, budget, "mean", False)


def test_equal_scores_go_from_all_groups_alike(network, ranking):
    for name in ranking.scores:
        ranking.scores[name] = torch.zeros(ranking.groups[name].size).double()
    budget = Budget(network, {"memory": 0.2})
    plan = global_threshold(network, ranking, budget, "none", False).plan
    shares = [n / ranking.groups[name].size for name, n in removed(ranking, plan).items()]
    assert 0.2 <= saving(network, plan) < 0.22
    # to a unit of the narrowest group
    narrowest = min(group.size for group in ranking.groups.values())
    assert max(shares) - min(shares) <= 1 / narrowest
