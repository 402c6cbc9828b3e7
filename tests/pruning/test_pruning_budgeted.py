"""The knapsack against brute force; plans composed against pruning twice; the rounds."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.measure.footprint import parameters
from psvit.pruning import prune, pruned_parameters
from psvit.pruning.budgeted import budgeted, choose_levels
from psvit.pruning.ranking import Ranking, units_removed
from psvit.pruning.surgery import compose


@pytest.mark.parametrize("seed", range(8))
def test_choice_is_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    cost = {f"g{i}": np.r_[0.0, rng.random(3).cumsum()] for i in range(5)}
    saved = {f"g{i}": np.r_[0, rng.integers(1, 50, 3).cumsum()] for i in range(5)}
    target = 0.6 * sum(levels[-1] for levels in saved.values())
    best = min(
        sum(cost[name][level] for name, level in zip(cost, levels, strict=True))
        for levels in itertools.product(range(4), repeat=5)
        if sum(saved[name][level] for name, level in zip(cost, levels, strict=True)) >= target
    )
    chosen = choose_levels(cost, saved, target)
    assert sum(cost[name][level] for name, level in chosen.items()) == pytest.approx(best)
    assert sum(saved[name][level] for name, level in chosen.items()) >= target


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="saves 11"):
        choose_levels({"g": np.array([0.0, 1.0])}, {"g": np.array([0, 10])}, 11)


def cut(ranking, ratio, kinds):
    return ranking.plan(
        {
            name: units_removed(group, ratio)
            for name, group in ranking.groups.items()
            if group.kind in kinds
        }
    )


@pytest.mark.parametrize(
    "first, second",
    [
        (["hidden"], ["value", "hidden"]),
        (["head"], ["value", "query_key"]),
        (["stream", "head"], ["head", "stream", "hidden"]),
        (["value", "query_key"], ["head"]),
    ],
)
def test_composed_plan_prunes_as_both_plans_do(network, images, first, second):
    one = cut(Ranking(network), 0.3, first)
    once = prune(network, one)
    two = cut(Ranking(once), 0.3, second)
    twice = prune(once, two)
    whole = prune(network, compose(network, one, two))
    assert parameters(whole) < parameters(once) < parameters(network)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(whole(images), twice(images))


def made_table(network, ranking, kl_per_unit):
    """Sensitivity rows whose divergence is a price for each unit removed."""
    rows = []
    for name, group in ranking.groups.items():
        for ratio in (0.25, 0.5, 0.75):
            removed = units_removed(group, ratio)
            left = pruned_parameters(network, ranking.plan({name: removed}))
            rows.append(
                {
                    "group": name,
                    "ratio": ratio,
                    "removed": removed,
                    "parameters": left,
                    "kl": kl_per_unit(name) * removed,
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_meets_the_target_with_the_groups_that_are_cheap(network, rounds):
    def price(name):
        return 1e-6 if "mlp" in name else 1.0

    mended = []
    plan, log = budgeted(
        network,
        Ranking,
        lambda current, ranking, _: made_table(current, ranking, price),
        lambda pruned, cut: mended.append(cut) or pruned,
        0.2,
        rounds,
    )
    saving = 1 - pruned_parameters(network, plan) / parameters(network)
    assert saving >= 0.2
    assert log.memory_saving.iloc[-1] == pytest.approx(saving)
    assert all("mlp" in name for name in plan)
    # nothing is mended for a round that does not come
    assert len(mended) == rounds - 1


def test_unreachable_target_names_the_option(network):
    with pytest.raises(UserError, match="pruning.target_memory_saving"):
        budgeted(
            network,
            Ranking,
            lambda current, ranking, _: made_table(current, ranking, len),
            lambda pruned, _: pruned,
            0.97,
            1,
        )


def test_empty_plan_composes_to_the_other(network):
    plan = cut(Ranking(network), 0.3, ["hidden", "value"])
    assert dict(compose(network, Plan(), plan)) == dict(plan)
    assert dict(compose(network, plan, Plan())) == dict(plan)


def test_where_all_costs_are_equal_it_cuts_least():
    free = {f"g{i}": np.zeros(4) for i in range(4)}
    saved = {f"g{i}": np.array([0, 3, 10, 50]) for i in range(4)}
    chosen = choose_levels(free, saved, 13)
    assert sum(saved[name][level] for name, level in chosen.items()) == 13
