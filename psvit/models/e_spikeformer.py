"""E-SpikeFormer, that is the efficient Spike-driven Transformer V3 (arXiv 2411.16061).

Meta-SpikeFormer's five stages with integer neurons (0 to 4 spikes a step), so that one time step
is enough:

    convolution block   x + SepConv7x7(x), x + MLP3x3(x)
    transformer block   x + SepConv3x3(x), x + attention(x), x + MLP1x1(x)
    attention           plain 1x1 query, key and value; value four times as wide
    head                mean over pixels, integer spike, linear, mean over time
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from psvit.models.attention import SpikingSelfAttention
from psvit.models.base import SpikingTransformer
from psvit.models.blocks import MLP, Head, ResidualBlock, SepConv
from psvit.models.pyramid import add_stages, check_stages
from psvit.neurons import IntegerLIF


class ESpikeFormer(SpikingTransformer):
    """Args:
        embed_dims: widths of the four stages; the first half of stage 1 has half the first.
        depth: blocks of stage1a, stage1b, stage2, stage3, stage4.
        num_heads: heads of every attention.
        image_size: pixels a side.
        num_classes: outputs.
        in_channels: 3 for images, 2 for event frames.
        time_steps: steps for which an image is shown; 1 in every released network.
        strides: down-sampling of the five stages; less than the published one suits small images.
        mlp_ratio: hidden over stage width of the MLPs.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.

    Raises:
        UserError: widths that the heads do not divide, lists of the wrong length, or an image
            that the strides shrink below 2 pixels.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 256, 360),
        depth: Sequence[int] = (1, 1, 2, 6, 2),
        num_heads: int = 8,
        image_size: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        time_steps: int = 1,
        strides: Sequence[int] = (2, 2, 2, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(time_steps)
        check_stages(
            embed_dims, depth, num_heads, image_size, num_classes, in_channels, strides, mlp_ratio
        )

        def sep_conv(width: int, kernel_size: int) -> nn.Module:
            return SepConv(width, 2 * width, kernel_size, IntegerLIF, spiking_depthwise=True)

        def convolution_block(width: int, drop_path: float) -> nn.Module:
            hidden = int(width * mlp_ratio)
            return ResidualBlock(
                drop_path,
                sep_conv=sep_conv(width, kernel_size=7),
                mlp=MLP(width, hidden, kernel_size=3, bias=False, neuron=IntegerLIF),
            )

        def transformer_block(width: int, drop_path: float) -> nn.Module:
            return ResidualBlock(
                drop_path,
                sep_conv=sep_conv(width, kernel_size=3),
                attn=SpikingSelfAttention(
                    # twice the usual scale, as in the released networks
                    width,
                    num_heads,
                    scale=2 * (width // num_heads) ** -0.5,
                    neuron=IntegerLIF,
                    attention_neuron=IntegerLIF,
                    value_ratio=4,
                ),
                mlp=MLP(width, int(width * mlp_ratio), neuron=IntegerLIF),
            )

        add_stages(
            self,
            embed_dims,
            depth,
            strides,
            in_channels,
            drop_path_rate,
            IntegerLIF,
            convolution_block,
            transformer_block,
        )
        # with the other families' values, here and in the head, 300 steps on CIFAR-10 gave 27 % in
        # place of 49 %
        self.init_weights(branch_gain=0.3, branch_bias=0.0)
        # the head reads the count itself, not the fraction
        self.head = Head(embed_dims[-1], num_classes, partial(IntegerLIF, norm=1), init_std=0.03)
