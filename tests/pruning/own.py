"""Networks as docs/own_network.md describes them, of blocks that no family here has."""

import torch
import torch.nn.functional as F
from torch import nn

from psvit.channels import ChannelGroup
from psvit.models import SpikingTransformer
from psvit.models.blocks import Downsample, Head
from psvit.models.layers import per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF


class QueryBlock(nn.Module):
    """x + project(value · spike(Σ query)), its modules its own children."""

    batch_norms = (("query", "query_bn"), ("value", "value_bn"), ("project", "project_bn"))

    def __init__(self, channels, affine=True):
        super().__init__()
        self.neuron = LIF()
        for name in ("query", "value", "project"):
            self.add_module(name, nn.Conv2d(channels, channels, 1, bias=False))
            is_affine = affine or name != "query"
            self.add_module(f"{name}_bn", nn.BatchNorm2d(channels, affine=is_affine))
        self.query_neuron, self.value_neuron, self.mask_neuron = LIF(), LIF(), LIF()

    def forward(self, x):
        spikes = self.neuron(x)
        query = self.query_neuron(per_step(spikes, self.query, self.query_bn))
        value = self.value_neuron(per_step(spikes, self.value, self.value_bn))
        mask = self.mask_neuron(query.sum(2, keepdim=True))
        return x + per_step(value * mask, self.project, self.project_bn)

    neurons = ("query_neuron",)

    def channel_groups(self):
        return [
            ChannelGroup(
                "query",
                "query_key",
                self.query.out_channels,
                producers=("query", "query_bn"),
                silenced=("query_bn",),
                neurons=self.neurons,
            )
        ]

    def residual_ports(self):
        return Ports(("query", "value"), ("project", "project_bn"))


class LinearHead(nn.Module):
    """Two linear layers over 2 x 2 tokens; ``layout`` says in what shape they read them."""

    LAYOUTS = ("[T, B, C]", "[T, B, N, C]", "[T · B, N, C]", "[B, N, C]", "[B, C]")

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        tokens = F.adaptive_avg_pool2d(x.flatten(0, 1), 2).flatten(2).mT
        if self.layout != "[T · B, N, C]":
            tokens = tokens.unflatten(0, x.shape[:2])
        if self.layout in ("[T, B, C]", "[B, C]"):
            tokens = tokens.mean(2)
        if self.layout in ("[B, N, C]", "[B, C]"):
            tokens = tokens.mean(0)
        y = self.fc2(self.fc1(tokens).tanh())
        # steps first, images behind them
        y = y.reshape(-1, x.shape[1], y.shape[-2] if "N" in self.layout else 1, 5)
        return y.mean((0, 2))

    def channel_groups(self):
        return [ChannelGroup("hidden", "hidden", self.fc1.out_features, ("fc1",), ("fc2",))]

    def residual_ports(self):
        return Ports(reads=("fc1",), residual=False)


class Own(SpikingTransformer):
    """A convolution, ``block`` and a head, 8 channels wide."""

    def __init__(self, block, head=None, stem=None, time_steps=3):
        super().__init__(time_steps)
        self.stem = stem or Downsample(3, 8, kernel_size=3, stride=4)
        self.stage1 = nn.Sequential(block)
        self.init_weights()
        self.head = head or Head(8, 5)


def alive(*args, **options):
    """``Own`` in float64 and evaluation mode, firing, with statistics of noise."""
    torch.manual_seed(0)
    network = Own(*args, **options).double().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.6, 1.8)
            nn.init.uniform_(module.bias, 0.2, 1.4)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        for _ in range(30):
            network(torch.randn(16, 3, 32, 32, dtype=torch.float64))
    return network.eval()
