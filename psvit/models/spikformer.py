"""Spikformer (arXiv 2209.15425, fig. 2).

    stem     3x3 convolution, spike, maximum pooling x4, width 1/8, 1/4, 1/2, 1
             x + spike(3x3 convolution(x)): position embedding
    stage1   x + SSA(x), x + MLP(x)         x depth
    head     mean over pixels, linear, mean over time

Shortcuts add spikes: a neuron stands behind every layer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from psvit.models.attention import SpikingSelfAttention
from psvit.models.base import SpikingTransformer, spread_drop_path
from psvit.models.blocks import MLP, Head, PatchConv, ResidualBlock
from psvit.models.checks import check_columnar, check_scales
from psvit.models.layers import ConvBN, max_pool, per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF


class Spikformer(SpikingTransformer):
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
        attention_scale: factor of Q (KᵀV), which grows with the tokens and the channels of a head:
            on small images the published one leaves the attention silent.
        qkv_bias: query, key and value have a bias, as in the released networks for CIFAR.
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
        attention_scale: float = 0.125,
        qkv_bias: bool = False,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(time_steps)
        check_columnar(
            embed_dims, depth, num_heads, image_size, num_classes, in_channels, strides, mlp_ratio
        )
        check_scales(attention_scale=attention_scale)
        pool1, pool2, pool3, pool4 = strides
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=PatchConv(in_channels, embed_dims // 8),
                conv2=PatchConv(embed_dims // 8, embed_dims // 4, LIF, pool1),
                conv3=PatchConv(embed_dims // 4, embed_dims // 2, LIF, pool2),
                conv4=PatchConv(embed_dims // 2, embed_dims, LIF, pool3),
                position=SpikingPositionEmbedding(embed_dims, pool4),
            )
        )
        self.stage1 = nn.Sequential(
            OrderedDict(
                (
                    f"block{index + 1}",
                    SpikformerBlock(
                        embed_dims,
                        rate,
                        attn=SpikingSelfAttention(
                            embed_dims,
                            num_heads,
                            attention_scale,
                            adds_spikes=True,
                            make_input=partial(ConvBN, bias=qkv_bias),
                            make_projection=partial(ConvBN, bias=True),
                        ),
                        mlp=MLP(embed_dims, int(embed_dims * mlp_ratio), adds_spikes=True),
                    ),
                )
                for index, rate in enumerate(spread_drop_path(drop_path_rate, depth))
            )
        )
        self.init_weights()
        self.head = Head(embed_dims, num_classes, nn.Identity)


class SpikingPositionEmbedding(nn.Module):
    """Spike and pool, then x + spike(3x3 convolution): the last step of the patch splitting."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, channels: int, pool: int):
        super().__init__()
        self.neuron = LIF()
        self.pool = max_pool(pool)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.output_neuron = LIF()

    def forward(self, x: Tensor) -> Tensor:
        x = per_step(self.neuron(x), self.pool)
        return x + self.output_neuron(per_step(x, self.conv, self.bn))

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv",), writes=("conv", "bn"))


class SpikformerBlock(ResidualBlock):
    """A block with the layer norms of every released checkpoint, which nothing reads."""

    def __init__(self, channels: int, drop_path_rate: float, **branches: nn.Module):
        super().__init__(drop_path_rate, **branches)
        self.norm1 = nn.LayerNorm(channels).requires_grad_(False)
        self.norm2 = nn.LayerNorm(channels).requires_grad_(False)

    def residual_ports(self) -> Ports:
        return Ports.joined([super().residual_ports(), Ports(writes=("norm1", "norm2"))])
