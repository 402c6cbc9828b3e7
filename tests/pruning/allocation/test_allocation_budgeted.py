"""The knapsack against brute force; plans composed against pruning twice; the rounds."""

import ctypes
import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import milp

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.measure.footprint import parameters
from psvit.measure.operations import count_macs
from psvit.pruning import prune, pruned_parameters
from psvit.pruning.allocation import Budget, budgeted, knapsack, make_meter
from psvit.pruning.allocation.knapsack import choose_levels
from psvit.pruning.ranking import Ranking, units_removed
from psvit.pruning.sensitivity import grid_points
from psvit.pruning.surgery import ParameterCounter, compose


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
    chosen = choose_levels(cost, {"memory": saved}, {"memory": target})
    assert sum(cost[name][level] for name, level in chosen.items()) == pytest.approx(best)
    assert sum(saved[name][level] for name, level in chosen.items()) >= target


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="11"):
        choose_levels({"g": np.array([0.0, 1.0])}, {"m": {"g": np.array([0, 10])}}, {"m": 11})


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
    rows, count = [], ParameterCounter(network)
    for name, group in ranking.groups.items():
        for ratio in (0.25, 0.5, 0.75):
            removed = units_removed(group, ratio)
            left = count(ranking.plan({name: removed}))
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


def price(name):
    return 1e-6 if "mlp" in name else 1.0


def solve(network, budget, kl_per_unit=price, divergences=(0.0,), max_steps=1, ranking=Ranking):
    """``budgeted`` on made tables and made divergences; also what was mended."""
    given, mended = iter(divergences), []

    def mend(pruned, plan):
        mended.append(plan)
        return pruned

    decision = budgeted(
        network,
        budget,
        ranking,
        lambda current, ranking: made_table(current, ranking, kl_per_unit),
        mend,
        lambda _: next(given),
        max_steps,
    )
    return decision, mended


def test_meets_the_target_with_the_groups_that_are_cheap(network):
    decision, mended = solve(network, Budget(network, {"memory": 0.2}))
    saving = 1 - pruned_parameters(network, decision.plan) / parameters(network)
    assert 0.2 <= saving < 0.22
    assert decision.log.memory_saving.tolist() == [pytest.approx(saving)]
    assert all("mlp" in name for name in decision.plan)
    assert len(mended) == 1
    # linear prices: the prediction is the number of removed units
    removed = sum(decision.why.removed)
    assert decision.predicted == pytest.approx(1e-6 * removed, rel=1e-6)
    assert decision.measure == "kl"


def test_groups_that_save_a_little_less_together(network):
    """30 units seem to save enough; because both groups are cut they save 1 too little."""
    # of 32 units each, of which 24 may go
    pair = ["stage1b.block1.mlp.hidden", "stage2.block1.sep_conv.hidden"]

    def meter(plan):
        cut = [32 - len(plan[name]) if name in plan else 0 for name in pair]
        return 1e6 - 1000 * sum(cut) + (901 if all(cut) else 0)

    budget = Budget(network, {"memory": 0.0291}, {"memory": meter})
    decision, _ = solve(network, budget, lambda name: 1e-6 if name in pair else 1.0)
    removed = dict(zip(decision.why.group, decision.why.removed, strict=True))
    assert sum(removed[name] for name in pair) == sum(removed.values()) == 31
    assert budget.met(decision.plan)


def test_it_ends_when_a_step_more_brings_nothing(network):
    # one step ends at 0.5; two at 0.3, by way of 0.1; three at 0.4; a fourth is not tried
    divergences = [0.5, 0.1, 0.3, 0.05, 0.1, 0.4]
    decision, mended = solve(
        network, Budget(network, {"memory": 0.2}), divergences=divergences, max_steps=5
    )
    log = decision.log
    assert log.steps.tolist() == [1, 2, 2, 3, 3, 3] and log.kl.tolist() == divergences
    assert len(mended) == 6
    # the plan is that of two steps
    saving = 1 - pruned_parameters(network, decision.plan) / parameters(network)
    assert saving == pytest.approx(log.memory_saving[2]) and saving >= 0.2
    assert dict(decision.plan) == dict(mended[2])
    # half of the way first
    assert 0.1 <= log.memory_saving[1] < 0.12


def test_a_later_step_counts_only_what_it_adds(network):
    """A table measured on a network that has already diverged begins at that divergence."""

    def table(current, ranking):
        rows = made_table(current, ranking, price)
        if current is not network:
            rows["kl"] += 7.0
        return rows

    given = iter([0.5, 7.0, 0.4])
    decision = budgeted(
        network,
        Budget(network, {"memory": 0.2}),
        Ranking,
        table,
        lambda pruned, _: pruned,
        lambda _: next(given),
        2,
    )
    assert decision.log.predicted_kl.max() < 0.01
    assert decision.predicted < 0.01


def test_several_budgets_bind_together(network, images):
    meters = {"macs": make_meter(network, "macs", images[:1])}
    # every plan that is tried is cut out for its operations: few groups
    solve_few = partial(solve, ranking=partial(Ranking, protect=["*.attn.*", "*.sep_conv.*"]))
    alone = solve_few(network, Budget(network, {"memory": 0.2}))[0].plan
    macs = 1 - count_macs(prune(network, alone)) / count_macs(network)
    both = Budget(network, {"memory": 0.2, "macs": macs + 0.05}, meters)
    assert not both.met(alone)
    found = solve_few(network, both)[0].plan
    assert both.met(found)
    assert count_macs(prune(network, found)) <= (1 - macs - 0.05) * count_macs(network)
    # and operations alone, with no more cut than that takes
    only = Budget(network, {"macs": 0.1}, meters)
    saved = only.savings(solve_few(network, only, lambda name: 1.0 + len(name) % 3)[0].plan)
    assert 0.1 <= saved["macs"] < 0.12


def test_unreachable_target_names_the_option(network):
    with pytest.raises(UserError, match="pruning.target_memory_saving"):
        solve(network, Budget(network, {"memory": 0.97}), len)


@pytest.mark.parametrize("resources", [["memory", "synops"], ["synops", "memory"]])
def test_the_resource_that_no_cut_saves_is_named(network, resources):
    targets = {"memory": 0.1, "synops": 0.97}
    meters = {"synops": lambda plan: 1.0 - 0.9 * bool(plan)}
    budget = Budget(network, {name: targets[name] for name in resources}, meters)
    with pytest.raises(UserError, match=r"^pruning\.target_saving=0\.97: of synops cannot"):
        solve(network, budget)


def test_empty_plan_composes_to_the_other(network):
    plan = cut(Ranking(network), 0.3, ["hidden", "value"])
    assert dict(compose(network, Plan(), plan)) == dict(plan)
    assert dict(compose(network, plan, Plan())) == dict(plan)


def test_where_all_costs_are_equal_it_cuts_least():
    free = {f"g{i}": np.zeros(4) for i in range(4)}
    saved = {f"g{i}": np.array([0, 3, 10, 50]) for i in range(4)}
    chosen = choose_levels(free, {"memory": saved}, {"memory": 13})
    assert sum(saved[name][level] for name, level in chosen.items()) == 13


def test_in_a_later_round_a_group_costs_what_it_adds(network):
    def table(current, ranking):
        # what earlier rounds did is in every row
        return made_table(current, ranking, price).assign(kl=lambda rows: rows.kl + 0.2)

    budget = Budget(network, {"memory": 0.2})
    expected = solve(network, budget)[0].plan
    found = budgeted(
        network, budget, Ranking, table, lambda pruned, _: pruned, lambda _: 0.0, 1, before=0.2
    )
    assert found.plan == expected


def test_a_way_that_ends_early_leaves_the_plan_of_the_one_before(network):
    def measure(current, ranking):
        if current is not network:
            raise UserError("pruning.protect", "all", "nothing is left to cut")
        return made_table(current, ranking, price)

    budget = Budget(network, {"memory": 0.2})
    found = budgeted(network, budget, Ranking, measure, lambda cut, _: cut, lambda _: 0.5, 2)
    assert found.plan == solve(network, budget)[0].plan and budget.met(found.plan)


def test_a_group_with_nothing_left_to_lose_is_no_reason_to_stop(network):
    whole = {name: group.size for name, group in network.channel_groups().items()}
    half = Ranking(network, min_keep=0.5)
    once = prune(network, half.plan({name: half.units(name, 1.0) for name in list(whole)[:3]}))
    later = Ranking(once, min_keep=0.5, whole=whole)
    stuck = {name for name in whole if later.removable(name) == [0]}
    assert stuck >= set(list(whole)[:3])
    assert {name for name, _ in grid_points(later, [0.3, 0.6])} == set(whole) - stuck
    with pytest.raises(UserError, match=r"^pruning\.min_keep=1000: .* can lose none"):
        grid_points(Ranking(once, min_keep=1000), [0.3])


def test_where_nothing_costs_anything_little_is_cut():
    rng = np.random.default_rng(0)
    saved = {f"g{i}": np.r_[0, rng.integers(5, 900, 7).cumsum()] for i in range(20)}
    goal = 0.1234 * sum(levels[-1] for levels in saved.values())
    cost = {name: np.zeros(8) for name in saved}
    chosen = choose_levels(cost, {"memory": saved}, {"memory": goal})
    assert goal <= sum(saved[name][level] for name, level in chosen.items()) <= 1.02 * goal


def test_what_the_solver_says_to_its_developers_is_not_heard(monkeypatch, capfd):
    printed = ctypes.CDLL(None)

    def talking(*args, **options):
        # as HiGHS does, past Python's streams
        printed.puts(b"transformNewIntegerFeasibleSolution")
        return milp(*args, **options)

    monkeypatch.setattr(knapsack, "milp", talking)
    print("before")
    choose_levels({"g": np.array([0.0, 1.0])}, {"m": {"g": np.array([0, 10])}}, {"m": 5})
    print("behind")
    printed.fflush(None)
    assert capfd.readouterr().out == "before\nbehind\n"
