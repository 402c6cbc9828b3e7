"""Meta-SpikeFormer, that is Spike-driven Transformer V2 (arXiv 2404.03663, fig. 2).

stage1a  7x7 downsample, convolution block x1      width embed_dims[0] / 2
stage1b      downsample, convolution block x1      width embed_dims[0]
stage2       downsample, convolution block x2      width embed_dims[1]
stage3       downsample, transformer block x6      width embed_dims[2]
stage4       downsample, transformer block x2      width embed_dims[3]
head         mean over pixels, spike, linear, mean over time

convolution block   x + SepConv7x7(x), x + MLP3x3(x)
transformer block   x + SDSA-3(x) of RepConvs, x + MLP1x1(x)
"""

from collections.abc import Sequence

from torch import nn

from psvit.models.attention import SpikingSelfAttention
from psvit.models.base import SpikingTransformer
from psvit.models.blocks import MLP, Head, ResidualBlock, SepConv
from psvit.models.checks import check_scales
from psvit.models.layers import RepConv
from psvit.models.pyramid import add_stages, check_stages
from psvit.neurons import LIF


class MetaSpikeFormer(SpikingTransformer):
    """Args:
        embed_dims: widths of the four stages; the first half of stage 1 has half the first.
        depth: blocks of stage1a, stage1b, stage2, stage3, stage4.
        num_heads: heads of every attention.
        image_size: pixels a side.
        num_classes: outputs.
        in_channels: 3 for images, 2 for event frames.
        time_steps: steps for which an image is shown.
        strides: down-sampling of the five stages; less than the published one suits small images.
        mlp_ratio: hidden over stage width of the MLPs.
        attention_scale: factor of Q (KᵀV), which grows with the tokens and the channels of a head:
            on small images the published one leaves the attention silent.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        surrogate_alpha: steepness of the sigmoid that stands for a spike's gradient; a flatter one
            than the published 4 lets gradients through more neurons, and trains in fewer epochs.

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
        time_steps: int = 4,
        strides: Sequence[int] = (2, 2, 2, 2, 1),
        mlp_ratio: float = 4.0,
        attention_scale: float = 0.125,
        drop_path_rate: float = 0.0,
        surrogate_alpha: float = 4.0,
    ):
        super().__init__(time_steps)
        check_stages(
            embed_dims, depth, num_heads, image_size, num_classes, in_channels, strides, mlp_ratio
        )
        check_scales(attention_scale=attention_scale, surrogate_alpha=surrogate_alpha)

        def convolution_block(width: int, drop_path: float) -> nn.Module:
            return ResidualBlock(
                drop_path,
                sep_conv=SepConv(width, 2 * width),
                mlp=MLP(width, int(width * mlp_ratio), kernel_size=3, bias=False),
            )

        def transformer_block(width: int, drop_path: float) -> nn.Module:
            return ResidualBlock(
                drop_path,
                attn=SpikingSelfAttention(
                    width, num_heads, attention_scale, make_input=RepConv, make_projection=RepConv
                ),
                mlp=MLP(width, int(width * mlp_ratio)),
            )

        add_stages(
            self,
            embed_dims,
            depth,
            strides,
            in_channels,
            drop_path_rate,
            LIF,
            convolution_block,
            transformer_block,
        )
        self.init_weights(branch_gain=0.5, branch_bias=0.0)
        self.head = Head(embed_dims[-1], num_classes, init_std=0.05)
        for module in self.modules():
            if isinstance(module, LIF):
                module.surrogate_function.alpha = float(surrogate_alpha)
