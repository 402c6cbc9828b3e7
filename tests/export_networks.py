"""Small float32 networks that fire, and what onnxruntime makes of them."""

import random
from collections import OrderedDict

import numpy as np
import onnxruntime
import torch
from torch import nn

from psvit.channels import Plan
from psvit.models import SpikingTransformer, create_model, register_model
from psvit.models.blocks import MLP, Downsample, Head, ResidualBlock
from psvit.neurons import LIF, IntegerLIF

PYRAMID = {
    "embed_dims": [16, 16, 16, 16],
    "depth": [1, 1, 1, 1, 1],
    "strides": [2, 2, 1, 2, 1],
    "mlp_ratio": 2.0,
}
COLUMN = {"embed_dims": 32, "depth": 1, "strides": [2, 2, 1, 1]}
# what a network has more of, alike: tracing it again takes most of a test's time
REPEATED = {
    "meta_spikeformer": ("stage1b.block1", "stage2", "stage4"),
    "e_spikeformer": ("stage1b.block1", "stage2", "stage4"),
    "qkformer": ("stage2.block1", "stage2.block2"),
}
FAMILIES = {
    "meta_spikeformer": PYRAMID,
    "e_spikeformer": PYRAMID,
    "sdt_v1": COLUMN,
    "spikformer": COLUMN,
    "qkformer": {**COLUMN, "depth": 4},
}


class Tiny(SpikingTransformer):
    """A stem, a block and a head: quick to trace."""

    def __init__(
        self, width=8, neuron="lif", image_size=8, num_classes=5, in_channels=3, time_steps=2
    ):
        super().__init__(time_steps)
        make = {"lif": LIF, "integer": IntegerLIF}[neuron]
        self.stem = Downsample(in_channels, width, 3, 2)
        block = ResidualBlock(0.0, mlp=MLP(width, 2 * width, neuron=make))
        self.stage1 = nn.Sequential(OrderedDict(block1=block))
        self.init_weights()
        self.head = Head(width, num_classes, make)


register_model("tiny_export", Tiny)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alive(name, **values):
    """A float32 network that fires; its logits tell the images apart."""
    torch.manual_seed(0)
    if name in FAMILIES:
        values = {"num_heads": 4, "image_size": 32, **FAMILIES[name], **values}
    network = create_model(name, num_classes=5, **values)
    for path in REPEATED.get(name, ()):
        parent, _, child = path.rpartition(".")
        delattr(network.get_submodule(parent), child)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.8)
        nn.init.uniform_(norm.bias, 0.2, 1.4)
        norm.momentum = None
    nn.init.normal_(network.head.fc.weight)
    spec = network.spec
    with torch.no_grad():
        for seed in range(3):
            network(noise(4, spec["in_channels"], *[spec["image_size"]] * 2, seed=100 + seed))
    return network.eval()


def cut(network, ratio=0.4):
    """A plan that leaves of every group of ``network``, head by head, a random part."""
    chooser, plan = random.Random(0), {}
    for name, group in network.channel_groups().items():
        per_head = group.size // group.heads
        keep = max(1, per_head - round(ratio * per_head))
        plan[name] = [
            head * per_head + unit
            for head in range(group.heads)
            for unit in chooser.sample(range(per_head), keep)
        ]
    return Plan(plan)


def torch_logits(network, images):
    with torch.no_grad():
        return network(images)


def assert_same(network, model, *batches):
    """onnxruntime gives torch's logits, which differ from image to image."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for images in batches:
        expected = torch_logits(network, images)
        assert len(images) == 1 or expected.std(0).max() > 0.01
        (found,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
