"""What a budget counts, and whom it blames."""

import pytest
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.measure.operations import count_macs
from psvit.pruning import prune
from psvit.pruning.allocation import Budget, make_meter
from psvit.pruning.allocation.budget import largest_cut, parameters_saving
from psvit.pruning.ranking import Ranking


def test_heads_and_their_channels_are_other_operations(network, images):
    """Half of the heads and half of each head's channels leave the same shapes."""
    groups = network.channel_groups()
    block = "stage3.block1.attn."
    heads = {f"{block}head": tuple(range(groups[f"{block}head"].size // 2))}
    width = {
        f"{block}{kind}": tuple(range(0, groups[f"{block}{kind}"].size, 2))
        for kind in ("query_key", "value")
    }
    meter = make_meter(network, "macs", images[:1])
    for kept in (heads, width):
        plan = Plan(kept)
        assert meter(plan) == count_macs(prune(network, plan))


def test_a_resource_that_the_network_spends_nothing_of(network, images):
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, 0.0)
            nn.init.constant_(norm.bias, -1.0)
    meter = make_meter(network, "synops", images[:1])
    expected = r"^pruning\.budget=\['memory', 'synops'\]: .* of synops it spends nothing"
    with pytest.raises(UserError, match=expected):
        Budget(network, {"memory": 0.1, "synops": 0.1}, {"synops": meter})


def saves(most):
    """A meter of which the largest cut saves ``most``."""
    return lambda plan: 1.0 - most * bool(plan)


def test_of_several_that_no_cut_saves_the_furthest_is_named(network):
    ranking = Ranking(network)
    hidden = [name for name, group in ranking.groups.items() if group.kind == "hidden"]
    most = parameters_saving(network, largest_cut(ranking, 1.0, hidden))
    # memory is short of 0.01, operations of 0.4
    budget = Budget(network, {"memory": most + 0.01, "macs": 0.5}, {"macs": saves(0.1)})
    expected = r"^pruning\.target_saving=0\.5: .* saves 0\.1000 of macs"
    with pytest.raises(UserError, match=expected):
        budget.check_reachable(ranking, 1.0, hidden)
    # and where operations are saved, memory
    budget = Budget(network, {"macs": 0.5, "memory": most + 0.01}, {"macs": saves(0.6)})
    with pytest.raises(UserError, match=r"^pruning\.target_memory_saving=.* of memory"):
        budget.check_reachable(ranking, 1.0, hidden)


def test_what_was_measured_is_not_measured_again(network):
    asked = []
    budget = Budget(network, {"synops": 0.5}, {"synops": lambda plan: asked.append(plan) or 10.0})
    budget.scaled(0.5).scaled(0.5)
    budget.towards({"synops": 0.1})
    assert len(asked) == 1
