"""Importances from the weights alone, against loops over single numbers."""

import math

import pytest
import torch
from torch import nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.pruning.importance import bn_scale, fpgm, l1, l2, lamp

SCOPES = ("all", "first")


def unit_filters(network, group, scope):
    """For each unit the list of all its filters' weights; batch norms are no filters."""
    filters = [[] for _ in range(group.size)]
    layers = [network.get_submodule(path) for path in group.producers]
    layers = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer in layers[: 1 if scope == "first" else None]:
        run = layer.weight.shape[0] // group.size
        for channel, weights in enumerate(layer.weight.tolist()):
            filters[channel // run] += torch.tensor(weights, dtype=torch.float64).flatten().tolist()
    return filters


def norm(values):
    return math.sqrt(math.fsum(value**2 for value in values))


def by_hand(name, filters):
    norms = [norm(values) for values in filters]
    if name == "l1":
        return [math.fsum(map(abs, values)) for values in filters]
    if name == "l2":
        return norms
    if name == "fpgm":
        return [
            math.fsum(norm(a - b for a, b in zip(one, other, strict=True)) for other in filters)
            for one in filters
        ]
    return [n**2 / math.fsum(m**2 for m in norms if m >= n) for n in norms]


# one of each kind, and a depthwise convolution and two branches among the producers
NAMES = (
    "stage1a.block1.sep_conv.hidden",
    "stage2.block1.mlp.hidden",
    "stage3.block1.attn.query_key",
    "stage3.block1.attn.value",
    "stage3.block1.attn.head",
    "stage1a.stream",
)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("importance", [l1, l2, fpgm, lamp])
def test_against_loops(network, importance, scope):
    for name in NAMES:
        group = network.channel_groups()[name]
        scores = importance(network, group, scope)
        assert scores.shape == (group.size,) and scores.dtype == torch.float64
        expected = by_hand(importance.__name__, unit_filters(network, group, scope))
        assert scores.tolist() == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("scope", SCOPES)
def test_bn_scale_against_loops(network, scope):
    signs = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=signs))
    for name in NAMES:
        group = network.channel_groups()[name]
        expected = [0.0] * group.size
        norms = [network.get_submodule(path) for path in group.producers]
        norms = [module for module in norms if isinstance(module, nn.BatchNorm2d)]
        for module in norms[: 1 if scope == "first" else None]:
            run = module.num_features // group.size
            for channel, scale in enumerate(module.weight.tolist()):
                expected[channel // run] += abs(scale)
        assert bn_scale(network, group, scope).tolist() == pytest.approx(expected, rel=1e-12), name


def one_layer(weight):
    """A network and a group of one linear layer with these rows as filters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer), ChannelGroup("g", "hidden", len(weight), producers=("0",))


def test_the_geometric_median_scores_lowest():
    # the median of points on a line is the middle one, wherever the others are
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0], [10.0, 10.0], [2.0, 2.0], [-30.0, -30.0]])
    scores = fpgm(*one_layer(weight))
    assert scores.argmin() == 1
    # the same filters twice
    twins = fpgm(*one_layer(torch.ones(2, 3)))
    assert twins.tolist() == [0.0, 0.0]


def test_lamp_of_units_whose_norms_tie_or_are_zero():
    weight = torch.tensor([[1.0], [-1.0], [0.0], [2.0]])
    # 4/4; then 1/(4 + 1), and 1/(4 + 1 + 1) for the one that keep_best drops before it
    assert lamp(*one_layer(weight)).tolist() == pytest.approx([1 / 5, 1 / 6, 0.0, 1.0])
    assert lamp(*one_layer(torch.zeros(2, 3))).tolist() == [0.0, 0.0]
    # the scale of the layer does not matter: 1 is the largest of every group
    assert torch.allclose(lamp(*one_layer(weight)), lamp(*one_layer(100 * weight)))


def test_bn_scale_of_a_group_without_batch_norm():
    with pytest.raises(UserError, match="bn_scale: the channel group g has no batch norm"):
        bn_scale(*one_layer(torch.ones(2, 3)))
