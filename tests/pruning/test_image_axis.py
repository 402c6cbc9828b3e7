"""Linear layers over tokens: what a batch gives is what its images give, by weights' gradients."""

import pytest
import torch
import torch.nn.functional as F
from own import LinearHead, QueryBlock, alive
from plans import logits
from torch import nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.pruning.calibration import gradients
from psvit.pruning.estimate import log_odds_effects

# as many images, steps and tokens, so that no length tells which is which
SAME = 4


@pytest.fixture
def images(images):
    return images[:SAME]


@pytest.fixture
def labels(labels):
    return labels[:SAME]


@pytest.fixture(params=LinearHead.LAYOUTS)
def network(request):
    return alive(QueryBlock(8), LinearHead(request.param), time_steps=SAME)


def test_gradients_of_each_image(network, images, labels):
    group = network.channel_groups()["head.hidden"]
    expected = []
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        fc = network.head.fc1
        expected.append((fc.weight.grad * fc.weight).sum(1) + fc.bias.grad * fc.bias)
    expected = torch.stack(expected).detach()
    assert expected.abs().amax(1).min() > 1e-4
    for size in (SAME, 3, 1):
        batches = list(zip(images.split(size), labels.split(size), strict=True))
        found = gradients(network, [group], batches)[group.name]
        assert torch.allclose(found.total, expected.sum(0), rtol=1e-9, atol=1e-12)
        assert torch.allclose(found.squares, expected.square().sum(0), rtol=1e-9, atol=1e-12)


def test_effects_of_each_image(network, images, labels):
    group = network.channel_groups()["head.hidden"]
    expected = []
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        chance = network(image[None]).softmax(1)[0, label]
        (chance.log() - (1 - chance).log()).backward()
        # linear in its weights: a unit's input times its slope is a column's weights times theirs
        expected.append((network.head.fc2.weight.grad * network.head.fc2.weight).sum(0))
    expected = torch.stack(expected).detach()
    assert expected.abs().amax(1).min() > 1e-4
    for size in (SAME, 3, 1):
        parts = zip(images.split(size), labels.split(size), strict=True)
        found = torch.cat([log_odds_effects(network, [group], *part)[group.name] for part in parts])
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_batch_norm_that_is_not_affine_has_no_gradient(images, labels):
    network = alive(QueryBlock(8, affine=False))
    group = network.channel_groups()["stage1.0.query"]
    expected = torch.zeros(8, dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        conv = network.stage1[0].query
        expected += (conv.weight.grad * conv.weight).detach().sum((1, 2, 3))
    assert expected.abs().max() > 1e-6
    found = gradients(network, [group], [(images, labels)])[group.name]
    assert torch.allclose(found.total, expected, rtol=1e-9, atol=1e-12)


class Position(LinearHead):
    """What it adds is the same for all images."""

    def __init__(self):
        super().__init__("[B, C]")
        self.place = nn.Linear(8, 8)

    def forward(self, x):
        return super().forward(x + self.place(x.new_ones(8))[:, None, None])


def test_a_layer_that_sees_no_image_is_told(images, labels):
    network = alive(QueryBlock(8), Position())
    assert logits(network, images).isfinite().all()
    group = ChannelGroup("place", "hidden", 8, ("head.place",), ("head.fc1",))
    with pytest.raises(UserError, match=r"head\.place: expected a module that runs on each image"):
        gradients(network, [group], [(images, labels)])
