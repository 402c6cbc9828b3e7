"""Spike-driven Transformer V1 (arXiv 2307.01694).

    stem     3x3 convolution x4 (spike, maximum pooling between them), width 1/8, 1/4, 1/2, 1
             x + 3x3 convolution(spike(x)): position embedding
    stage1   x + SDSA-1(x), x + MLP(x)      x depth
    head     mean over pixels, spike, linear, mean over time

Shortcuts add membrane currents: a neuron stands before every layer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from psvit.models.attention import SpikeDrivenSelfAttention
from psvit.models.base import SpikingTransformer, spread_drop_path
from psvit.models.blocks import MLP, Head, PatchConv, ResidualBlock
from psvit.models.checks import check_columnar
from psvit.models.layers import ConvBN, per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF


class SpikeDrivenTransformer(SpikingTransformer):
    """Args:
        embed_dims: width of the blocks, a multiple of 8.
        depth: blocks.
        num_heads: heads of every attention.
        image_size: pixels a side.
        num_classes: outputs.
        in_channels: 3 for images, 2 for event frames.
        time_steps: steps for which an image is shown.
        strides: pooling behind each of the stem's four convolutions; 1 for none.
        mlp_ratio: hidden over block width of the MLPs.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.

    Raises:
        UserError: a width that the heads or the stem do not divide, or an image that the strides
            shrink below 2 pixels.
    """

    def __init__(
        self,
        embed_dims: int = 512,
        depth: int = 8,
        num_heads: int = 8,
        image_size: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        time_steps: int = 4,
        strides: Sequence[int] = (2, 2, 2, 2),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(time_steps)
        check_columnar(
            embed_dims, depth, num_heads, image_size, num_classes, in_channels, strides, mlp_ratio
        )
        pool1, pool2, pool3, pool4 = strides
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=PatchConv(in_channels, embed_dims // 8),
                conv2=PatchConv(embed_dims // 8, embed_dims // 4, LIF, pool1),
                conv3=PatchConv(embed_dims // 4, embed_dims // 2, LIF, pool2),
                conv4=PatchConv(embed_dims // 2, embed_dims, LIF, pool3, pool_after=pool4),
                position=PositionEmbedding(embed_dims),
            )
        )
        self.stage1 = nn.Sequential(
            OrderedDict(
                (
                    f"block{index + 1}",
                    ResidualBlock(
                        rate,
                        attn=TalkingHeadsAttention(
                            embed_dims, num_heads, make_projection=partial(ConvBN, bias=True)
                        ),
                        mlp=MLP(embed_dims, int(embed_dims * mlp_ratio)),
                    ),
                )
                for index, rate in enumerate(spread_drop_path(drop_path_rate, depth))
            )
        )
        self.init_weights()
        self.head = Head(embed_dims, num_classes)


class PositionEmbedding(nn.Module):
    """x + 3x3 convolution of its spikes: where a token is, from what its neighbours do."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, channels: int):
        super().__init__()
        self.neuron = LIF()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + per_step(self.neuron(x), self.conv, self.bn)

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv",), writes=("conv", "bn"))


class TalkingHeadsAttention(SpikeDrivenSelfAttention):
    """SDSA-1 with the talking-heads weights of every released checkpoint, which nothing reads."""

    def __init__(self, channels: int, num_heads: int, **options):
        super().__init__(channels, num_heads, **options)
        self.talking_heads = nn.Parameter(torch.zeros(num_heads, num_heads, 1), requires_grad=False)
