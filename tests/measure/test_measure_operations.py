"""Operations counted by hand on a network of two layers, and of whole families against others."""

import math
import sys
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based.op_counter import (
    DispatchCounterMode,
    MACCounter,
    SynOpCounter,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from psvit.measure.operations import add_energy, count_macs, count_operations
from psvit.measure.segments import SegmentSum, macs, seconds
from psvit.models import SpikingTransformer, create_model
from psvit.neurons import IntegerLIF
from psvit.pruning import prune
from psvit.pruning.allocation import uniform
from psvit.pruning.ranking import Ranking

sys.path.append(str(Path(__file__).parents[1] / "models"))
from networks import alive  # noqa: E402
from networks import images as family_images  # noqa: E402


class TwoLayers(SpikingTransformer):
    """Pixels -> convolution -> integer neuron -> linear; what the neuron emits is given."""

    def __init__(self, levels, norm=None):
        super().__init__(1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.neuron = IntegerLIF(levels, norm)
        self.fc = nn.Linear(4 * 5 * 5, 7)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(self.neuron(x[None])[0].flatten(1))


@pytest.mark.parametrize("norm", [None, 1, 2])
def test_two_layers_by_hand(norm):
    network = TwoLayers(4, norm)
    images = torch.rand(2, 3, 5, 5)
    # the centre of each filter alone: currents are multiples of the first pixel channel
    nn.init.zeros_(network.conv.weight)
    network.conv.weight.data[:, 0, 1, 1] = torch.tensor([0.0, 1.0, 2.0, 9.0])
    images[:, 0] = 1.0
    table = count_operations(network, images).set_index("layer")
    assert list(table.index) == ["conv", "fc"]
    assert table.macs["conv"] == 4 * 3 * 9 * 25 and table.macs["fc"] == 100 * 7
    # pixels are no spikes
    assert math.isnan(table.rate["conv"]) and table.sops["conv"] == 0
    # the channels fire 0, 1, 2 and, of 9, 4 times
    assert table.rate["fc"] == pytest.approx((0 + 1 + 2 + 4) / 4)
    assert table.sops["fc"] == pytest.approx(1.75 * 700)
    # three of the four channels fire at all, one of them four times at once
    assert table.active["fc"] == 0.75 and table.input["fc"] == "integer"
    assert table.real_macs.tolist() == [2700, 0] and table.input["conv"] == "real"
    energy = add_energy(table, mac_pj=4.6, ac_pj=0.9)
    # 2,700 MACs of pixels; then 1,225 accumulates, or 700 MACs
    assert energy.energy_mj.tolist() == pytest.approx([4.6 * 2700e-9, 0.9 * 1225e-9])
    assert energy.energy_integer_macs_mj.tolist() == pytest.approx([4.6 * 2700e-9, 4.6 * 700e-9])
    dear = add_energy(table, mac_pj=5.0, ac_pj=2.0)
    assert dear.energy_mj.sum() == pytest.approx((5 * 2700 + 2 * 1225) * 1e-9)


@pytest.mark.parametrize("levels", [3, 5, 7, 13])
def test_fractions_that_do_not_come_out_even_are_whole_numbers_of_spikes(levels):
    network = TwoLayers(levels)
    images = torch.zeros(1, 3, 5, 5)
    nn.init.zeros_(network.conv.weight)
    network.conv.weight.data[:, 0, 1, 1] = 1.0
    # every number of spikes up to D once: 7/13 of them times 13 are 7.0000005 in float32
    images[0, 0].view(-1)[: levels + 1] = torch.arange(levels + 1.0)
    table = count_operations(network, images).set_index("layer")
    assert table.input["fc"] == "integer" and table.real_macs["fc"] == 0
    # four channels alike, each spike read by seven
    assert table.sops["fc"] == pytest.approx(4 * 7 * levels * (levels + 1) / 2)


class Product(SpikingTransformer):
    """(query · keyᵀ) · value of integer spikes, given as images of three channels ``[N, C]``."""

    def __init__(self):
        super().__init__(1)
        self.neuron, self.fc = IntegerLIF(4), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        query, key, value = self.neuron(x).transpose(0, 1)
        return self.fc((query @ key.mT @ value).sum((1, 2))[:, None])


def test_a_product_of_fractions_is_a_whole_number_of_smaller_ones():
    # one query fires 3 of 4 times, and one key 1: 3/16; two values fire, 4 times and 2
    query, key, value = (torch.zeros(2, 2) for _ in range(3))
    query[0, 0], key[0, 0], value[0] = 3.0, 1.0, torch.tensor([4.0, 2.0])
    table = count_operations(Product(), torch.stack([query, key, value])[None])
    # the sparser operand drives: the key's 1 spike, each read by 2 queries, then the product's
    # 3 of the unit 1/16 against the value's 6, each read by 2
    first, second = 1 * 2, 3 * 2
    assert table.set_index("layer").sops.to_dict() == {"Product": first + second, "fc": 3 * (4 + 2)}


def test_pixels_are_no_spikes_even_where_they_are_0_and_1():
    network, images = TwoLayers(1), torch.ones(1, 3, 5, 5)
    table = count_operations(network, images).set_index("layer")
    assert table.input["conv"] == "real" and table.sops["conv"] == 0
    # events are: their counts come as frames
    events = count_operations(Frames(network), images[None]).set_index("layer")
    assert events.input["network.conv"] == "spikes"
    assert events.sops["network.conv"] == events.macs["network.conv"] == 2700


class Frames(nn.Module):
    """Two layers that take frames ``[B, T, C, H, W]`` of one step."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x[:, 0])


def test_batches_add_up_and_every_step_is_counted(network, images):
    whole = count_operations(network, images)
    parts = [count_operations(network, part) for part in images.split([3, 8])]
    assert whole.macs.equals(parts[0].macs)
    mean = (3 * parts[0].sops + 8 * parts[1].sops) / 11
    assert whole.sops.tolist() == pytest.approx(mean.tolist())
    # once visibly: the stem computes one step of a still image, everything behind it four
    assert whole.steps.tolist() == [1, *[network.time_steps] * (len(whole) - 1)]
    frames = images[:2, None].repeat(1, 4, 1, 1, 1)
    seen, shown = count_operations(network, frames), count_operations(network, images[:2])
    assert (seen.steps == 4).all() and seen.macs[0] == 4 * shown.macs[0]
    assert seen.macs[1:].equals(shown.macs[1:])


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        # currents are added, and a neuron stands before every layer
        ("sdt_v1", {"stem.conv1.conv": "real", "stage1.block1.mlp.conv1": "spikes"}),
        # spikes are added: the first layer of a branch reads sums of them, the second spikes
        ("spikformer", {"stage1.block1.mlp.conv1": "integer", "stage1.block1.mlp.conv2": "spikes"}),
        # the head reads their mean over the pixels
        ("qkformer", {"stage1.block1.attn.query.conv": "integer", "head.fc": "real"}),
        ("e_spikeformer", {"stage1a.downsample.conv": "real", "head.fc": "integer"}),
    ],
)
def test_what_the_layers_of_a_family_read(family, kinds):
    table = add_energy(count_operations(alive(family), family_images(2))).set_index("layer")
    assert {layer: table["input"][layer] for layer in kinds} == kinds
    integer = table["input"] == "integer"
    assert integer.any() == (family != "sdt_v1")
    assert (table["rate"] > table["active"])[integer].all()
    assert table["rate"][table["input"] == "spikes"].between(0, 1).all()
    differ = table["energy_mj"] != table["energy_integer_macs_mj"]
    assert (differ == integer).all()


def test_spikingjelly_counts_the_same_where_its_counter_holds(network, images):
    """On layers of binary spikes without padding; a border's spikes it counts as seldom as they
    are used, integers as no spikes, and an attention's products by the spikes that meet."""
    network = network.float()
    ours = count_operations(network, images.float()).set_index("layer")
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        network(images.float())
    theirs = {
        path.partition(".")[2]: sum(counts.values()) / len(images)
        for path, counts in counter.get_counts().items()
    }
    compared = 0
    for layer, row in ours[ours.input == "spikes"].iterrows():
        module = network.get_submodule(layer)
        if isinstance(module, nn.Linear) or getattr(module, "kernel_size", None) == (1, 1):
            assert theirs[layer] == pytest.approx(row.sops, rel=1e-6), layer
            compared += 1
        elif isinstance(module, nn.Conv2d):
            assert theirs[layer] <= row.sops
    assert compared > 10


def test_macs_are_those_of_the_flop_counter_and_fall_with_the_widths(network, images):
    macs = count_operations(network, images[:2])["macs"].sum()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images[:1])
    assert macs == counter.get_total_flops() / 2 == count_macs(network)
    small = prune(network, uniform(Ranking(network, kinds=["hidden"]), 0.5))
    block = "stage3.block1.mlp"
    before, after = (
        count_operations(net, images[:2]).set_index("layer").macs for net in (network, small)
    )
    assert list(before.index) == list(after.index)
    for layer in before.index:
        if layer.startswith(block):
            assert after[layer] == before[layer] / 2
    assert count_macs(small.to("meta")) == after.sum()


ONES = torch.ones(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("image", "synops", "macs"),
    [
        # at the border, a 3x3 filter uses a spike less than nine times: 800 of 4 * 2 * 9 * 16
        (ONES, 800, 0),
        # two spikes an element, and fractions of four, are no spikes
        (2 * ONES, 0, 1152),
        (ONES / 4, 0, 1152),
        # and a black image is
        (0 * ONES, 0, 0),
    ],
)
def test_where_spikingjelly_s_counters_count_otherwise(image, synops, macs):
    convolution = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    counters = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode(list(counters)):
        convolution(image)
    assert [counter.get_total() for counter in counters] == [synops, macs]


def test_dense_macs_are_those_that_were_published():
    # Spikformer (arXiv 2209.15425): 8.33 G of Transformer-8-512, whose 38.340 mJ are
    # 4.6 pJ each; the same layers without spikes, but for the order of the attention's products
    with torch.device("meta"):
        network = create_model("spikformer_8_512", num_classes=1000, image_size=224, time_steps=1)
    assert count_macs(network) / 1e9 == pytest.approx(8.33, rel=0.005)


def test_attention_products_count_their_spikes(network, images):
    table = count_operations(network, images).set_index("layer")
    # four heads of 8 channels, 4 tokens... of width 32 at T = 4: two products of N x d x d a head
    spec = network.spec
    products = table.loc["stage3.block1.attn"]
    width, heads, steps = spec["embed_dims"][2], spec["num_heads"], spec["time_steps"]
    tokens = (spec["image_size"] // math.prod(spec["strides"][:4])) ** 2
    assert products.macs == 2 * steps * heads * tokens * (width // heads) ** 2
    assert 0 < products.rate < 1
    # every layer behind a neuron reads spikes; the stem reads pixels, RepConv and the separable
    # convolution have layers without one before them
    real = table.rate.isna()
    assert real["stem1.conv"] if "stem1.conv" in table.index else real.iloc[0]
    assert not real["head.fc"] and not real["stage3.block1.mlp.conv1"]
    assert real["stage3.block1.attn.projection.conv2"]


def test_a_silent_network_has_no_spike_operations(network, images):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.0)
            nn.init.constant_(module.bias, -1.0)
    table = count_operations(network, images)
    assert table.sops.sum() == 0 and table.macs.sum() > 0


def test_a_segment_is_measured_once(network, images):
    calls = []

    def measure(run):
        calls.append(run)
        return macs(run)

    total = SegmentSum(measure, images)
    segments = len(network.segments())
    assert total(network) == len(images) * count_macs(network)
    assert len(calls) == segments
    # a cut in one block is measured in that block, and in no other
    small = prune(network, uniform(Ranking(network), 0.5, ["stage3.block1.mlp.hidden"]))
    assert total(small) == len(images) * count_macs(small)
    assert len(calls) == segments + 1
    # one of the stream, in all blocks of its stage and the next one's entrance
    ranking = Ranking(network, kinds=["stream"])
    name = next(iter(ranking.groups))
    small = prune(network, uniform(ranking, 0.5, [name]))
    assert total(small) == len(images) * count_macs(small)
    assert segments + 1 < len(calls) < 2 * segments


def test_time_is_taken(network, images):
    assert SegmentSum(seconds, images)(network) > 0
