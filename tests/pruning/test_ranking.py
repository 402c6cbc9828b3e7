"""Which channels go and how many: choices against all choices."""

import itertools
import math

import pytest
import torch

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.pruning import importance
from psvit.pruning.importance import STATISTICS, l2
from psvit.pruning.ranking import Ranking, keep_best, removable, units_removed


def group_of(size, heads=1):
    return ChannelGroup("g", "value", size, (), heads=heads)


@pytest.mark.parametrize(
    ("size", "heads", "ratio", "removed"),
    [
        (10, 1, 0.0, 0),
        (10, 1, 0.2, 2),
        (10, 1, 0.24, 2),
        (10, 1, 0.25, 3),  # 2.5: halves go up, not to the even neighbour
        (10, 1, 0.35, 4),
        (10, 1, 0.01, 1),  # above 0: at least one
        (10, 1, 0.99, 9),  # never all
        (10, 1, 1.0, 9),
        (64, 1, 0.1, 6),
        (12, 4, 0.2, 4),  # 0.6 of 3 a head: one each
        (12, 4, 0.5, 8),  # 1.5 of 3
        (12, 4, 0.9, 8),
        (40, 4, 0.3, 12),
        (4, 4, 0.5, 0),  # a head of one channel
        (1, 1, 0.9, 0),
        (4, 1, 0.5, 2),  # whole heads are units of a group with heads=1
    ],
)
def test_units_removed(size, heads, ratio, removed):
    assert units_removed(group_of(size, heads), ratio) == removed


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("removed_per_head", [0, 1])
def test_the_best_are_kept_evenly(heads, removed_per_head):
    size, removed = 8, removed_per_head * heads
    per_head = size // heads
    for seed in range(5):
        scores = torch.rand(size, generator=torch.Generator().manual_seed(seed))
        even = [
            kept
            for kept in itertools.combinations(range(size), size - removed)
            if {sum(unit // per_head == head for unit in kept) for head in range(heads)}
            == {per_head - removed_per_head}
        ]
        best = max(even, key=lambda kept: scores[list(kept)].sum().item())
        assert keep_best(scores, group_of(size, heads), removed) == best


def test_ties_keep_the_lower_index():
    assert keep_best(torch.ones(6), group_of(6), 4) == (0, 1)
    assert keep_best(torch.ones(6), group_of(6, heads=2), 4) == (0, 3)


def test_a_plan_keeps_the_largest_norms_and_names_only_what_is_cut(network):
    ranking = Ranking(network)
    name = "stage2.block1.mlp.hidden"
    plan = ranking.plan({name: 10, "stage1a.block1.mlp.hidden": 0})
    assert list(plan) == [name] and len(plan[name]) == 64 - 10
    norms = l2(network, ranking.groups[name])
    gone = sorted(set(range(64)) - set(plan[name]))
    assert norms[gone].max() < norms[list(plan[name])].min()
    # cutting further keeps none of those that were gone before
    assert set(ranking.plan({name: 30})[name]) < set(plan[name])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda group: True),
        ({"kinds": ["value", "stream"]}, lambda group: group.kind in ("value", "stream")),
        ({"protect": ["stage3.*"]}, lambda group: not group.name.startswith("stage3.")),
        (
            {"protect": ["*.mlp.hidden", "stage1a.stream"], "kinds": ["hidden", "stream"]},
            lambda group: (
                group.kind in ("hidden", "stream")
                and not group.name.endswith(".mlp.hidden")
                and group.name != "stage1a.stream"
            ),
        ),
    ],
)
def test_what_may_be_pruned(network, options, expected):
    groups = network.channel_groups()
    ranking = Ranking(network, **options)
    assert list(ranking.groups) == [name for name, group in groups.items() if expected(group)]
    assert ranking.groups


@pytest.mark.parametrize(
    ("kinds", "same_as"),
    [
        (["hidden", "value"], ["hidden", "value"]),
        (None, ["hidden", "value", "stream"]),
        (["query_key"], ["hidden", "value", "stream"]),
    ],
)
def test_a_ranking_of_some_of_its_kinds(network, kinds, same_as):
    found = Ranking(network, kinds=["hidden", "value", "stream"]).of_kinds(kinds)
    expected = Ranking(network, kinds=same_as)
    assert list(found.groups) == list(expected.groups) == list(found.scores)
    half = {name: found.units(name, 0.5) for name in found.groups}
    assert found.plan(half) == expected.plan(half)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "l3"}, "pruning.importance=l3: expected one of l1, l2, "),
        (
            {"protect": ["stage3.*", "stage7.*"]},
            "pruning.protect=stage7.*: matches no channel group",
        ),
        ({"scope": "last"}, "pruning.scope=last: expected one of all, first"),
        ({"importance": "taylor"}, "pruning.importance=taylor: needs calibration images"),
        ({"protect": ["*"]}, "pruning.protect=['*']: leaves no channel group to prune: "),
        (
            {"kinds": ["value"], "protect": ["*.value"]},
            "pruning.protect=['*.value']: leaves no channel group of the kinds value to prune: ",
        ),
        ({"kinds": ["depth"]}, "pruning.kinds=['depth']: no channel group is left to prune; "),
    ],
)
def test_what_is_refused(network, options, message):
    with pytest.raises(UserError) as error:
        Ranking(network, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_network_that_declares_no_groups(network, monkeypatch):
    monkeypatch.setattr(network, "channel_groups", dict, raising=False)
    with pytest.raises(UserError, match=r"this network has none: nothing declares channel_groups"):
        Ranking(network)


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_units_removed_rounds_halves_up_within_a_head(heads):
    for per_head in (2, 3, 10, 45, 64):
        for step in range(1, 1000):
            ratio = step / 1000
            count = min(max(math.floor(ratio * per_head + 0.5), 1), per_head - 1)
            assert units_removed(group_of(heads * per_head, heads), ratio) == heads * count


@pytest.mark.parametrize(
    "size, heads, channels",
    [
        (64, 1, 1),
        (60, 1, 1),
        (7, 1, 1),
        (24, 4, 1),
        (40, 4, 1),
        (12, 12, 1),
        (4, 1, 8),
        (6, 1, 4),
        (1, 1, 9),
    ],
)
@pytest.mark.parametrize("round_to", [1, 4, 8])
@pytest.mark.parametrize("min_keep", [0, 1, 5, 24, 0.3, 0.95])
def test_removable_against_all_counts(size, heads, channels, round_to, min_keep):
    group = group_of(size, heads)
    floor = min_keep * size * channels if min_keep < 1 else min_keep
    even = [kept for kept in range(1, size) if kept % heads == 0]
    multiples = [kept for kept in even if kept * channels % round_to == 0]
    expected = {size - kept for kept in (multiples or even) if kept * channels >= floor} | {0}
    assert removable(group, round_to, min_keep, channels) == sorted(expected)


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({"round_to": 8}, [0]),  # a multiple already; 16 channels had others
        ({"min_keep": 0.5}, [0]),
        ({"min_keep": 0.25}, [0, 1, 2, 3, 4]),
        ({"min_keep": 6}, [0, 1, 2]),
        ({"round_to": 32}, [0, 1, 2, 3, 4, 5, 6, 7]),  # too narrow from the start
    ],
)
def test_limits_are_of_the_group_before_it_was_cut(limits, counts):
    assert removable(group_of(8), **limits, whole=16) == counts
    if limits != {"min_keep": 6}:
        # in one step or in two, the same numbers may be left
        once = {16 - cut for cut in removable(group_of(16), **limits)}
        assert {8 - cut for cut in counts} == {left for left in once if left <= 8}


def test_a_share_is_not_raised_by_floating_point():
    # 0.07 * 100 is a little above 7
    assert removable(group_of(100), min_keep=0.07)[-1] == 93


def test_a_ratio_takes_the_nearest_allowed_count(network):
    ranking = Ranking(network, round_to=8, min_keep=0.25)
    rounded = 0
    for name, group in ranking.groups.items():
        allowed = ranking.removable(name)
        run = network.get_submodule(group.producers[0]).weight.shape[0] // group.size
        for ratio in (0.0, 0.01, 0.2, 0.5, 0.77, 0.999):
            units = ranking.units(name, ratio)
            assert units in allowed and units <= 0.75 * group.size
            if ratio == 0.0:
                assert units == 0
                continue
            others = [count for count in allowed if count]
            distance = min((abs(count - ratio * group.size) for count in others), default=0)
            if units:
                assert abs(units - ratio * group.size) == pytest.approx(distance, abs=1e-9)
            assert bool(units) == bool(others)
            rounded += units > 0 and (group.size - units) * run % 8 == 0
            kept = ranking.plan({name: units}).get(name, range(group.size))
            assert len(kept) == group.size - units
    assert rounded > 20


def test_without_constraints_a_ranking_cuts_as_units_removed(network):
    ranking = Ranking(network)
    for name, group in ranking.groups.items():
        for ratio in (0.0, 0.05, 0.3, 0.35, 0.6, 1.0):
            assert ranking.units(name, ratio) == units_removed(group, ratio)
        assert ranking.removable(name) == list(range(0, group.size, group.heads))


@pytest.mark.parametrize("name", importance.IMPORTANCES)
def test_every_importance_ranks(network, images, labels, name):
    kinds = ["hidden", "query_key", "value", "head"]
    protect = ["stage1*", "stage2*"]
    ranking = Ranking(network, name, kinds, protect, batches=[(images[:2], labels[:2])])
    assert {group.kind for group in ranking.groups.values()} == set(kinds)
    for group_name, scores in ranking.scores.items():
        assert scores.shape == (ranking.groups[group_name].size,) and scores.dtype == torch.float64
        assert scores.isfinite().all() and scores.unique().numel() > 1, group_name
    again = Ranking(network, name, kinds, protect, batches=[(images[:2], labels[:2])])
    first = Ranking(network, name, kinds, protect, "first", batches=[(images[:2], labels[:2])])
    differ = False
    for group_name, scores in ranking.scores.items():
        assert torch.equal(scores, again.scores[group_name])
        differ |= not torch.equal(scores, first.scores[group_name])
    # chance knows no producers
    assert differ == (name != "random")


def test_chance_follows_the_seed(network):
    group = next(iter(network.channel_groups()))
    first, again, other = (Ranking(network, "random", seed=seed).scores for seed in (3, 3, 4))
    assert torch.equal(first[group], again[group])
    assert not torch.equal(first[group], other[group])
    # every group draws its own
    drawn = torch.cat(list(first.values()))
    assert drawn.unique().numel() == drawn.numel()


def test_batches_are_gone_through_once_and_only_where_needed(network, images, labels):
    passes = []

    class Batches:
        def __iter__(self):
            passes.append(1)
            return iter([(images[:1], labels[:1])])

    for name in importance.IMPORTANCES:
        passes.clear()
        Ranking(network, name, protect=["stage[12]*"], batches=Batches())
        assert len(passes) == (name in STATISTICS)
