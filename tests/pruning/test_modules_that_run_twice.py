"""Own networks whose modules run twice, lie in two containers, or read what another reads, too."""

import pytest
import torch
import torch.nn.functional as F
from own import alive
from torch import nn

from psvit.channels import ChannelGroup, Plan
from psvit.errors import UserError
from psvit.inference import optimize_for_inference
from psvit.measure.footprint import measure_footprint
from psvit.models.layers import per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF
from psvit.pruning import masked, prune
from psvit.pruning.estimate import log_odds_effects
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.sensitivity import Mending, measure_sensitivity
from psvit.pruning.surgery import ParameterCounter
from psvit.reuse import keep_weights, with_kept_weights

HIDDEN = "stage1.0.hidden"


class Mlp(nn.Module):
    """An MLP with a tanh inside, which the blocks below run in their own ways."""

    def __init__(self, channels=8, hidden=12):
        super().__init__()
        self.neuron = LIF()
        self.up, self.down = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def channel_groups(self):
        hidden = self.up.out_channels
        return [ChannelGroup("hidden", "hidden", hidden, ("up",), ("down",))]

    def residual_ports(self):
        return Ports(("up",), ("down",))


class Twice(Mlp):
    """The same two layers on the spikes and on where there are none."""

    def forward(self, x):
        spikes = self.neuron(x)
        for read in (spikes, 1.0 - spikes):
            x = x + per_step(read, self.up, nn.Tanh(), self.down)
        return x


class InTwoContainers(Mlp):
    """One layer that two branches read by, each behind it with a batch norm of its own."""

    batch_norms = (("down", "norm"),)

    def __init__(self, channels=8, hidden=12):
        super().__init__(channels, hidden)
        self.norm = nn.BatchNorm2d(channels)
        self.other = nn.Sequential(self.down, nn.BatchNorm2d(channels))

    def forward(self, x):
        hidden = per_step(self.neuron(x), self.up, nn.Tanh())
        first = per_step(hidden, self.down, self.norm)
        return x + first - 0.5 * per_step(hidden, self.other)

    def residual_ports(self):
        return Ports(("up",), ("down", "norm", "other.1"))


class OneNorm(nn.Module):
    """One batch norm behind each of two layers."""

    batch_norms = (("first", "norm"), ("second", "norm"))

    def __init__(self, channels=8):
        super().__init__()
        self.neuron, self.norm = LIF(), nn.BatchNorm2d(channels)
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        spikes = self.neuron(x)
        x = x + per_step(spikes, self.first, self.norm)
        return x + per_step(spikes, self.second, self.norm)

    def residual_ports(self):
        return Ports(("first", "second"), ("first", "second", "norm"))


class Tied(nn.Sequential):
    """Two MLPs whose first layers have the same weights; ``whole``: are the same layer."""

    def __init__(self, whole=False):
        super().__init__(Mlp(), Mlp())
        if whole:
            self[1].up = self[0].up
        else:
            self[1].up.weight = self[0].up.weight

    def forward(self, x):
        for mlp in self:
            x = x + per_step(mlp.neuron(x), mlp.up, nn.Tanh(), mlp.down)
        return x

    def residual_ports(self):
        return Ports.joined(mlp.residual_ports().within(str(i)) for i, mlp in enumerate(self))


class OneTensor(nn.Module):
    """Two layers that read the same tensor; ``apart``: each a view of its own."""

    def __init__(self, apart, channels=8):
        super().__init__()
        self.apart = apart
        self.neuron = LIF()
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        spikes = self.neuron(x).flatten(0, 1)
        first, second = (spikes[:], spikes[:]) if self.apart else (spikes, spikes)
        return x + (self.first(first) + self.second(second)).unflatten(0, x.shape[:2])

    def residual_ports(self):
        return Ports(("first", "second"), ("first", "second"))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=generator)
    return images, torch.tensor([0, 1, 2, 3])


def loss(network, batch):
    with torch.no_grad():
        return float(F.cross_entropy(network(batch[0]), batch[1]))


@pytest.mark.parametrize("block", [Twice, InTwoContainers])
def test_a_row_is_the_network_that_is_cut(block, batch, tmp_path):
    network = alive(block())
    ranking = Ranking(network, "l2", ["hidden"])
    file, place = tmp_path / "sensitivity.csv", torch.device("cpu")
    table = measure_sensitivity(network, [batch], [0.25, 0.5, 0.9], ranking, file, place)
    base = loss(network, batch)
    for row in table.itertuples():
        cut = loss(prune(network, ranking.plan({HIDDEN: row.removed})), batch)
        assert row.loss == pytest.approx(cut, abs=1e-6)
        assert abs(cut - base) > 1e-4


@pytest.mark.parametrize("block", [Twice, InTwoContainers])
def test_the_copy_for_inference_is_masked_as_the_network_is(block, batch):
    network = alive(block())
    plan = Ranking(network, "l2", ["hidden"]).plan({HIDDEN: 6})
    fast = optimize_for_inference(network)
    with torch.no_grad(), masked(network, plan), masked(fast, plan):
        torch.testing.assert_close(fast(batch[0]), network(batch[0]))


@pytest.mark.parametrize("block", [OneNorm, Tied, InTwoContainers])
def test_the_copy_for_inference_answers_as_the_network_does(block, batch, tmp_path):
    network = alive(block())
    fast = optimize_for_inference(network)
    with torch.no_grad():
        torch.testing.assert_close(fast(batch[0]), network(batch[0]))
    # in channels-last order a 1x1 kernel is dense: what is stored has to be copied for all that
    network = network.float().to(memory_format=torch.channels_last)
    keep_weights(tmp_path, network)
    kept = with_kept_weights(network, tmp_path).state_dict()
    assert all(torch.equal(kept[name], x) for name, x in network.state_dict().items())
    table = measure_footprint(network, batch[0].float())
    parameters = sum(x.numel() for x in network.parameters())
    assert table.loc[0, "weight_bytes"] == 4 * parameters


def test_weights_that_two_layers_share_are_counted_once_until_they_are_cut(batch):
    network = alive(Tied())
    counted = ParameterCounter(network)
    whole = sum(x.numel() for x in network.parameters())
    first, second = "stage1.0.0.hidden", "stage1.0.1.hidden"
    for cut, saved in (
        ({}, 0),
        # what is left of one is its own: the other keeps all
        ({first: range(9)}, 3 * (1 + 8) - 9 * 8),
        ({first: range(9), second: range(6)}, 3 * (1 + 8) + 6 * (1 + 8) + 12 * 8 - 9 * 8 - 6 * 8),
    ):
        small = prune(network, Plan(cut))
        assert counted(Plan(cut)) == whole - saved == sum(x.numel() for x in small.parameters())


def test_a_layer_of_two_blocks_is_no_layer_of_two_groups():
    said = r"stage1\.0\.1\.hidden\.producers=stage1\.0\.1\.up: is stage1\.0\.0\.up, too"
    with pytest.raises(UserError, match=said):
        alive(Tied(whole=True)).channel_groups()


def test_fisher_information_is_that_of_both_calls(batch):
    network = alive(Twice())
    found = Ranking(network, "fisher", ["hidden"], batches=[batch]).scores[HIDDEN]
    # by definition: the squared derivative of each image's loss by a factor on the unit
    gate = torch.ones(len(batch[1]), 12, dtype=torch.float64, requires_grad=True)
    network.stage1[0].up.register_forward_hook(
        lambda _module, _args, y: y * gate.repeat(len(y) // len(gate), 1)[:, :, None, None]
    )
    total = F.cross_entropy(network(batch[0]), batch[1], reduction="sum")
    (slopes,) = torch.autograd.grad(total, gate)
    torch.testing.assert_close(found, slopes.square().mean(0))


def test_recovery_solves_for_both_calls_as_the_analysis_does(batch, tmp_path):
    network = alive(Twice())
    ranking = Ranking(network, "l2", ["hidden"])
    mending = Mending(network, ranking, [batch], 0.1)
    file, place = tmp_path / "sensitivity.csv", torch.device("cpu")
    table = measure_sensitivity(network, [batch], [0.5], ranking, file, place, mending=mending)
    plan = ranking.plan({HIDDEN: int(table.removed[0])})
    mended = recover(prune(network, plan), network, plan, [batch[0]], "least_squares", 0.1)
    assert table.loss[0] == pytest.approx(loss(mended, batch), abs=1e-6)


def test_each_reader_of_one_tensor_has_its_own_share_of_the_effect(batch):
    found = [
        log_odds_effects(network, network.channel_groups().values(), *batch)["stage1.stream"]
        for network in (alive(OneTensor(apart)) for apart in (True, False))
    ]
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("method", ["bn", "both"])
def test_a_batch_norm_without_running_statistics_has_none_to_mend(method, batch):
    block = InTwoContainers()
    block.norm = nn.BatchNorm2d(8, track_running_stats=False)
    network = alive(block)
    plan = Ranking(network, "l2", ["hidden"]).plan({HIDDEN: 6})
    mended = recover(prune(network, plan), network, plan, [batch[0]], method)
    assert mended.stage1[0].norm.running_mean is None
    assert not torch.equal(mended.stage1[0].other[1].running_mean, block.other[1].running_mean)
