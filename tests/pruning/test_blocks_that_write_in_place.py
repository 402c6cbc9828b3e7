"""``y += x`` for ``x + y``: the same network, so the same sensitivities, scores and recovery."""

import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.models import SpikingTransformer
from psvit.models.blocks import Downsample, Head
from psvit.models.layers import per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF
from psvit.pruning import prune
from psvit.pruning.estimate import log_odds_effects
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.sensitivity import measure_sensitivity
from psvit.pruning.sensitivity.replay import written_in_place

sys.path.append(str(Path(__file__).parents[1] / "models"))
from networks import FAMILIES, alive, images  # noqa: E402

WAYS = ("to what the branch gave", "to what enters the block")


class Branch(nn.Module):
    """Two convolutions, each behind a neuron."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.neuron1, self.reduce = LIF(), nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.neuron2, self.expand = LIF(), nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = per_step(self.neuron1(x), self.reduce, self.bn1)
        return per_step(self.neuron2(x), self.expand, self.bn2)

    def channel_groups(self) -> list[ChannelGroup]:
        size = self.reduce.out_channels
        return [
            ChannelGroup(
                "hidden", "hidden", size, producers=("reduce", "bn1"), consumers=("expand",)
            )
        ]

    def residual_ports(self) -> Ports:
        return Ports(reads=("reduce",), writes=("expand", "bn2"))


class Block(nn.Module):
    """Two branches, added to the stream."""

    def __init__(self, written: str):
        super().__init__()
        self.a, self.b, self.written = Branch(8, 6), Branch(8, 6), written

    def forward(self, x: Tensor) -> Tensor:
        for branch in (self.a, self.b):
            if self.written == WAYS[0]:
                y = branch(x)
                y += x
                x = y
            elif self.written == WAYS[1]:
                x += branch(x)
            else:
                x = x + branch(x)
        return x

    def residual_ports(self) -> Ports:
        both = {"a": self.a, "b": self.b}
        return Ports.joined([branch.residual_ports().within(name) for name, branch in both.items()])


class Network(SpikingTransformer):
    def __init__(self, written: str = "nowhere"):
        super().__init__(time_steps=2)
        self.stem = Downsample(3, 8, kernel_size=3, stride=2)
        # what the stem gives is one image for all steps: torch lets nobody write to that
        self.down = Downsample(8, 8, kernel_size=3, stride=1, neuron=LIF)
        self.stage1 = nn.Sequential(
            OrderedDict(block1=Block(written), block2=Block(written), block3=Block(written))
        )
        self.init_weights()
        self.head = Head(8, 5)


def network(written: str = "nowhere") -> Network:
    torch.manual_seed(3)
    return Network(written).double().eval()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(torch.randn(8, 3, 12, 12).double(), torch.randint(5, (8,))) for _ in range(2)]


@pytest.mark.parametrize("written", WAYS)
def test_the_rows_are_those_of_the_network_that_writes_nowhere(written, batches, tmp_path):
    tables = []
    for each in (network(), network(written)):
        ranking = Ranking(each, "l2", kinds=["hidden", "stream"])
        path = tmp_path / f"{len(tables)}.csv"
        table = measure_sensitivity(each, batches, [0.5], ranking, path, torch.device("cpu"))
        tables.append(table)
    assert (tables[0].kl > 0).all()
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("written", WAYS)
@pytest.mark.parametrize("importance", ["fisher", "taylor", "reconstruction", "firing_rate"])
def test_the_scores_are_those_of_the_network_that_writes_nowhere(written, importance, batches):
    kinds = ["hidden"] if importance in ("reconstruction", "firing_rate") else ["hidden", "stream"]
    plain, other = (
        Ranking(each, importance, kinds=kinds, batches=batches).scores
        for each in (network(), network(written))
    )
    assert plain.keys() == other.keys()
    for group, scores in plain.items():
        torch.testing.assert_close(other[group], scores, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("written", WAYS)
def test_estimates_are_those_of_the_network_that_writes_nowhere(written, batches):
    plain, other = (
        log_odds_effects(each, each.channel_groups().values(), *batches[0])
        for each in (network(), network(written))
    )
    for group, effects in plain.items():
        torch.testing.assert_close(other[group], effects, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("written", WAYS)
@pytest.mark.parametrize("method", ["least_squares", "both"])
def test_recovery_is_that_of_the_network_that_writes_nowhere(written, method, batches):
    shown = [x for x, _ in batches]
    before = [x.clone() for x in shown]
    mended = []
    for each in (network(), network(written)):
        ranking = Ranking(each, "l2", kinds=["hidden"])
        plan = ranking.plan(dict.fromkeys(ranking.groups, 3))
        mended.append(recover(prune(each, plan), each, plan, shown, method).state_dict())
    for name, tensor in mended[0].items():
        torch.testing.assert_close(mended[1][name], tensor, msg=name)
    assert all(torch.equal(x, y) for x, y in zip(shown, before, strict=True))


@pytest.mark.parametrize("written", WAYS)
def test_who_writes_is_found(written):
    segments = {"stage1.block1", "stage1.block2", "stage1.block3"}
    assert written_in_place(network(written), torch.randn(2, 3, 12, 12).double()) == segments
    assert written_in_place(network(), torch.randn(2, 3, 12, 12).double()) == frozenset()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_published_networks_write_nowhere(name):
    shown = images(2)
    with torch.inference_mode():
        assert not written_in_place(alive(name, time_steps=2, in_channels=3), shown)
