"""What a layer reads, on networks whose neurons fire as they are told."""

import copy

import pytest
import torch
from torch import nn

from psvit.measure.operations import count_operations
from psvit.models import SpikingTransformer
from psvit.models.layers import per_step
from psvit.neurons import LIF, IntegerLIF


def pointwise(channels=2, weight=0.3):
    """A 1x1 convolution that makes of ones what no neuron emits."""
    layer = nn.Conv2d(channels, channels, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


class Chain(SpikingTransformer):
    """A stem, and a block behind it."""

    def __init__(self, stem, block, steps=3):
        super().__init__(steps)
        self.stem, self.block = stem, block


class Stem(nn.Module):
    """Convolution, neuron, convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.neuron, self.conv2 = pointwise(weight=4.0), LIF(), pointwise()

    def forward(self, x):
        return per_step(self.neuron(per_step(x, self.conv1)), self.conv2)


class Layers(nn.Module):
    """``forward`` is ``function(layers, x)``."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


class Steps(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return per_step(x, *self.layers)


def read(network, images=None):
    """``count_operations``, by layer; of images of ones where there are none."""
    images = torch.ones(2, 2, 4, 4) if images is None else images
    return count_operations(network.eval(), images).set_index("layer")


def test_a_first_segment_with_a_neuron_computes_every_step():
    network = Chain(Stem(), Steps(pointwise())).eval()
    images = torch.ones(2, 2, 4, 4)
    table = read(network, images)
    # 2 x 2 weights at 16 positions in 3 steps
    assert table.steps.tolist() == [3, 3, 3] and (table.macs == 3 * 4 * 16).all()
    assert table.input.tolist() == ["real", "spikes", "real"]
    # currents of 8 make every neuron fire in every step
    assert table.rate["stem.conv2"] == 1 and table.sops["stem.conv2"] == 192
    # the same image as frames of events, of which there is one in every pixel
    frames = read(network, images.unsqueeze(1).repeat(1, 3, 1, 1, 1))
    assert frames.input["stem.conv1"] == "spikes"
    assert frames.drop("stem.conv1").equals(table.drop("stem.conv1"))


def test_a_first_segment_without_a_neuron_computes_one():
    table = read(Chain(Steps(pointwise(), pointwise()), Steps(pointwise())))
    assert table.steps.tolist() == [1, 1, 3] and table.macs.tolist() == [64, 64, 192]
    assert (table.input == "real").all()


def branches(layers, x):
    a, b = layers.a(x), layers.b(x)
    return per_step(a, layers.conv_a) + per_step(b, layers.conv_b)


@pytest.mark.parametrize("first", ["a", "b"])
def test_every_layer_counts_in_its_own_neuron_s_unit(first):
    neurons = {"a": IntegerLIF(4), "b": LIF()}
    block = Layers(branches, **neurons, conv_a=pointwise(), conv_b=pointwise())
    if first == "b":
        block.a, block.b = block.b, block.a
    # currents of 3, in every step: three spikes of at most four, and one
    table = read(Chain(Steps(pointwise(weight=1.5)), block))
    integer, binary = ("a", "b") if first == "a" else ("b", "a")
    assert table.input[f"block.conv_{integer}"] == "integer"
    assert table.input[f"block.conv_{binary}"] == "spikes"
    assert table.rate[f"block.conv_{integer}"] == 3 and table.rate[f"block.conv_{binary}"] == 1
    assert (table.real_macs[["block.conv_a", "block.conv_b"]] == 0).all()


def halves(layers, x):
    spikes = layers.neuron(x)
    return per_step(spikes * 0.5, layers.conv)


def repeated(layers, x):
    spikes = layers.neuron(x)
    return per_step(spikes * 2 + spikes, layers.conv)


def pooled(layers, x):
    spikes = layers.neuron(x)
    return per_step(spikes, nn.MaxPool2d(2), layers.conv)


def averaged(layers, x):
    spikes = layers.neuron(x)
    return per_step(spikes, nn.AvgPool2d(2), layers.conv) + spikes.mean()


def masked(layers, x):
    spikes = layers.neuron(x)
    return per_step(spikes * layers.neuron2(spikes.sum(2, keepdim=True)), layers.conv)


def written(layers, x):
    buffer = torch.empty_like(x)
    for step, spikes in enumerate(layers.neuron(x)):
        buffer[step] = spikes
    return per_step(buffer, layers.conv)


def behind_another(layers, x):
    return per_step(layers.neuron(x), layers.first, layers.conv)


def normed(layers, x):
    return per_step(layers.neuron(x), layers.norm, layers.conv)


@pytest.mark.parametrize(
    ("function", "alive", "dead"),
    [
        (pooled, "spikes", "spikes"),
        (masked, "spikes", "spikes"),
        (written, "spikes", "spikes"),
        # several at once, where there are any
        (repeated, "integer", "spikes"),
        (halves, "real", "real"),
        (averaged, "real", "real"),
        (behind_another, "real", "real"),
        (normed, "real", "real"),
    ],
)
def test_a_silent_neuron_makes_no_other_kind_of_layer(function, alive, dead):
    block = Layers(
        function,
        neuron=LIF(),
        neuron2=LIF(),
        first=pointwise(),
        norm=nn.BatchNorm2d(2),
        conv=pointwise(),
    )
    network = Chain(Steps(pointwise(weight=1.5)), block)
    images = torch.ones(2, 2, 4, 4)
    # a column without spikes, so that averages over it are no whole numbers
    images[..., 0] = 0
    silent = copy.deepcopy(network)
    nn.init.zeros_(silent.stem.layers[0].weight)
    before, after = read(network, images), read(silent, images)
    assert (before.input["block.conv"], after.input["block.conv"]) == (alive, dead)
    assert before.macs.equals(after.macs)
    assert after.real_macs["block.conv"] == (after.macs["block.conv"] if dead == "real" else 0)
    assert before.real_macs.equals(after.real_macs) and after.sops.sum() == 0


def test_whole_numbers_that_are_no_spikes():
    """A convolution may give ones, of spikes or of pixels: they are no spikes for that."""
    block = Layers(behind_another, neuron=LIF(), first=pointwise(weight=0.5), conv=pointwise())
    table = read(Chain(Steps(pointwise(weight=1.5)), block))
    assert table.input.tolist() == ["real", "spikes", "real"]
