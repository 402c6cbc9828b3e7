"""Own networks of layers that no family here has: padded by name, never run, or in groups."""

import copy

import pytest
import torch
from own import alive
from torch import nn

from psvit.channels import ChannelGroup, Plan
from psvit.errors import UserError
from psvit.inference import optimize_for_inference
from psvit.models.layers import per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF
from psvit.pruning import masked, prune, pruned_parameters
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.sensitivity import Mending, measure_sensitivity
from psvit.pruning.surgery import compose

HIDDEN = "stage1.0.hidden"
CPU = torch.device("cpu")


class Mlp(nn.Module):
    """x + expand(spike(reduce(spike(x)))), the layer that expands a 3x3 convolution."""

    def __init__(self, channels=8, hidden=8, **options):
        super().__init__()
        self.neuron1, self.neuron2 = LIF(), LIF()
        self.reduce, self.bn = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, channels, 3, **options)

    consumers = ("expand",)

    def forward(self, x):
        hidden = per_step(self.neuron1(x), self.reduce, self.bn)
        return x + per_step(self.neuron2(hidden), self.expand)

    def channel_groups(self):
        size = self.reduce.out_channels
        return [ChannelGroup("hidden", "hidden", size, ("reduce", "bn"), self.consumers)]

    def residual_ports(self):
        return Ports(("reduce",), ("expand",))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=generator)
    return images, torch.arange(6) % 5


def what_calibration_finds(network, batch, tmp_path):
    """The scores that need images, a mended table, and the weights that recovery leaves."""
    found = {}
    for importance in ("firing_rate", "spike_rank", "reconstruction", "fisher"):
        found |= Ranking(network, importance, ["hidden"], batches=[batch]).scores
        found[importance] = found.pop(HIDDEN)
    ranking = Ranking(network, "l2", ["hidden"])
    mending = Mending(network, ranking, [batch], 0.1)
    file = tmp_path / "sensitivity.csv"
    table = measure_sensitivity(network, [batch], [0.5], ranking, file, CPU, mending=mending)
    found["table"] = torch.tensor(table[["loss", "kl"]].to_numpy())
    plan = ranking.plan({HIDDEN: 4})
    mended = recover(prune(network, plan), network, plan, [batch[0]], "least_squares", 0.1)
    found["mended"] = mended.stage1[0].expand.weight.detach()
    with torch.no_grad():
        found["logits"] = mended(batch[0])
    as_cut = prune(network, plan).stage1[0].expand.weight
    assert (found["mended"] - as_cut).abs().max() > 1e-3
    return found


def test_a_reader_that_is_padded_by_name_is_calibrated_as_one_padded_by_number(batch, tmp_path):
    by_number = alive(Mlp(padding=1))
    by_name = alive(Mlp(padding="same"))
    by_name.load_state_dict(copy.deepcopy(by_number.state_dict()))
    expected = what_calibration_finds(by_number, batch, tmp_path)
    for name, found in what_calibration_finds(by_name, batch, tmp_path).items():
        torch.testing.assert_close(found, expected[name], msg=name)


class KeepsAnOldLayer(Mlp):
    """``old`` is declared for its checkpoint's sake, and never runs."""

    consumers = ("old", "expand")

    def __init__(self):
        super().__init__(padding=1)
        self.old = nn.Conv2d(8, 8, 1)


def test_a_reader_that_never_runs_is_passed_over(batch, tmp_path):
    network, keeps = alive(Mlp(padding=1)), alive(KeepsAnOldLayer())
    keeps.load_state_dict(network.state_dict(), strict=False)
    expected = what_calibration_finds(network, batch, tmp_path)
    for name, found in what_calibration_finds(keeps, batch, tmp_path).items():
        torch.testing.assert_close(found, expected[name], msg=name)


@pytest.mark.parametrize("importance", ["firing_rate", "spike_rank", "reconstruction"])
def test_channels_that_nothing_reads_are_worth_nothing(importance, batch):
    network = alive(KeepsAnOldLayer())
    # of the readers the first one only, which never runs
    ranking = Ranking(network, importance, ["hidden"], scope="first", batches=[batch])
    assert ranking.scores[HIDDEN].tolist() == [0.0] * 8


class Filters(Mlp):
    """Behind the hidden channels a convolution in groups, of ``filters`` filters a channel."""

    def __init__(self, filters=1, groups=8, size=8):
        super().__init__(padding=1)
        self.size = size
        self.depthwise = nn.Conv2d(8, 8 * filters, 3, padding=1, groups=groups)
        self.wide_bn, self.neuron3 = nn.BatchNorm2d(8 * filters), LIF()
        self.expand = nn.Conv2d(8 * filters, 8, 1)

    def forward(self, x):
        hidden = self.neuron2(per_step(self.neuron1(x), self.reduce, self.bn))
        wide = self.neuron3(per_step(hidden, self.depthwise, self.wide_bn))
        return x + per_step(wide, self.expand)

    def channel_groups(self):
        producers = ("reduce", "bn", "depthwise", "wide_bn")
        size = self.reduce.out_channels * self.size // 8
        return [ChannelGroup("hidden", "hidden", size, producers, ("expand",))]


@pytest.mark.parametrize(("filters", "size"), [(1, 8), (2, 8), (3, 8), (2, 4)])
def test_a_depthwise_convolution_of_several_filters_a_channel(filters, size, batch):
    network = alive(Filters(filters, size=size))
    plan = Plan({HIDDEN: [0, size - 1]})
    pruned = prune(network, plan)
    with torch.no_grad(), masked(network, plan):
        expected, fast = network(batch[0]), optimize_for_inference(network)(batch[0])
    with torch.no_grad():
        assert (network(batch[0]) - expected).abs().max() > 1e-6
        torch.testing.assert_close(pruned(batch[0]), expected)
        torch.testing.assert_close(fast, expected)
        torch.testing.assert_close(optimize_for_inference(pruned)(batch[0]), expected)
    assert pruned_parameters(network, plan) == sum(p.numel() for p in pruned.parameters())
    left = pruned.stage1[0].depthwise
    channels = 2 * 8 // size
    assert (left.in_channels, left.out_channels) == (channels, channels * filters)
    assert left.groups == channels and left.weight.shape[:2] == (channels * filters, 1)
    # and once more, to the last unit
    then = Plan({HIDDEN: [1]})
    both = compose(network, plan, then)
    assert both == {HIDDEN: (size - 1,)}
    with torch.no_grad(), masked(network, both):
        torch.testing.assert_close(prune(pruned, then)(batch[0]), network(batch[0]))


def in_groups(filters=1, size=8, groups=8, reads_in_groups=1):
    """A block whose layers do not fit its group."""
    block = Filters(filters, groups, size)
    block.expand = nn.Conv2d(8 * filters, 8, 1, groups=reads_in_groups)
    return block


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 4}, "producers=stage1.0.depthwise: has 4 groups: .*, or a depthwise one"),
        # its channels' filters read two channels each
        ({"groups": 4, "filters": 2}, "producers=stage1.0.depthwise: has 4 groups"),
        ({"reads_in_groups": 4}, "consumers=stage1.0.expand: has 4 groups: .* without any$"),
        # a depthwise convolution writes what it reads
        ({"reads_in_groups": 8}, "consumers=stage1.0.expand: has 8 groups: .* without any$"),
        ({"size": 5}, "producers=stage1.0.reduce: has 8 channels: .* group's 5 units"),
        ({"size": 16, "filters": 2}, "producers=stage1.0.reduce: has 8 channels: .* 16 units"),
    ],
)
def test_layers_that_cannot_lose_a_unit_are_told(options, said):
    with pytest.raises(UserError, match=rf"^stage1\.0\.hidden\.{said}"):
        alive(in_groups(**options)).channel_groups()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.BatchNorm2d(12, affine=False), "producers=stage1.0.wide_bn: has 12 channels"),
        (nn.Conv2d(12, 8, 1), "consumers=stage1.0.expand: has 12 channels"),
    ],
)
def test_every_layer_s_channels_are_a_multiple_of_the_units(layer, said):
    network = alive(Filters())
    name = "expand" if isinstance(layer, nn.Conv2d) else "wide_bn"
    setattr(network.stage1[0], name, layer)
    with pytest.raises(UserError, match=rf"hidden\.{said}: expected a multiple of .* 8 units"):
        network.channel_groups()
