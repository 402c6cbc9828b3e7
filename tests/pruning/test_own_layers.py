"""Own networks whose layers are not those of the families here: padded by name, never run."""

import copy

import pytest
import torch
from own import alive
from torch import nn

from psvit.channels import ChannelGroup
from psvit.models.layers import per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF
from psvit.pruning import prune
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.sensitivity import Mending, measure_sensitivity

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
