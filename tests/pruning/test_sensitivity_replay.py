"""A candidate of which only what changes is computed, against the whole network, bit by bit."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from plans import same_bits
from torch import Tensor, nn

from psvit.neurons import LIF, reset_state
from psvit.pruning import masked
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity.measure import run_candidates
from psvit.pruning.sensitivity.replay import Replay

sys.path.append(str(Path(__file__).parents[1] / "models"))
from networks import FAMILIES, alive, images  # noqa: E402


@pytest.mark.parametrize("name", FAMILIES)
def test_every_candidate_is_the_whole_network_masked(name):
    network, x = alive(name, time_steps=2, in_channels=3), images(2)
    ranking = Ranking(network)
    plans = {
        (group, count): ranking.plan({group: count})
        for group in ranking.groups
        for count in ranking.removable(group)[1:2]
    }
    before = copy.deepcopy(network.state_dict())
    with torch.inference_mode():
        base = network(x)
        found = dict(run_candidates(network, x, base, list(plans), plans))
        assert found.keys() == plans.keys()
        for candidate, plan in plans.items():
            with masked(network, plan):
                assert torch.equal(found[candidate], network(x)), candidate
    assert same_bits(network.state_dict(), before)
    assert not any("forward" in vars(module) for module in network.modules())


class Counted(nn.Conv2d):
    """Counts how often it computes."""

    def __init__(self):
        super().__init__(2, 2, 1)
        self.ran = 0

    def forward(self, x: Tensor) -> Tensor:
        self.ran += 1
        return super().forward(x)


class Branches(nn.Module):
    """Query and key read the same spikes; a neuron runs twice, its state going from one call on."""

    def __init__(self):
        super().__init__()
        self.first, self.query, self.key, self.last = Counted(), Counted(), Counted(), Counted()
        self.twice = LIF()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.first(x).unsqueeze(0))
        q, k = self.query(x[0]), self.key(x[0])
        return self.last(self.twice((q + k).unsqueeze(0))[0])


@pytest.mark.parametrize(
    ("changed", "computed"),
    [
        ("first", ["first", "query", "key", "last"]),
        # the neuron before them runs again, for its state: their input is another tensor
        ("query", ["query", "key", "last"]),
        ("last", ["last"]),
    ],
)
def test_only_what_changes_is_computed(changed, computed):
    torch.manual_seed(0)
    block = Branches()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        replay = Replay(block)
        replay.record(lambda: block(x), x)
        for module in block.children():
            module.ran = 0
        getattr(block, changed).weight[0] = 0.0
        reset_state(block)
        with replay.changed([changed]):
            found = block(x)
        ran = [name for name, module in block.named_children() if getattr(module, "ran", 0)]
        reset_state(block)
        assert torch.equal(found, block(x))
    assert ran == computed


class Parallel(Branches):
    """Without the neuron, query and key read one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.query(x) * self.key(x))


def test_a_later_module_that_reads_what_did_not_change_is_not_computed():
    block = Parallel()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        replay = Replay(block)
        replay.record(lambda: block(x), x)
        block.query.weight.zero_()
        with replay.changed(["query"]):
            found = block(x)
        assert (block.first.ran, block.query.ran, block.key.ran, block.last.ran) == (1, 2, 1, 2)
        assert torch.equal(found, block(x))
