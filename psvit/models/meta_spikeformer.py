"""Meta-SpikeFormer, that is Spike-driven Transformer V2 (arXiv 2404.03663, fig. 2): PSViT's network.

    stage1a  7x7 downsample, convolution block x1      width embed_dims[0] / 2
    stage1b      downsample, convolution block x1      width embed_dims[0]
    stage2       downsample, convolution block x2      width embed_dims[1]
    stage3       downsample, transformer block x6      width embed_dims[2]
    stage4       downsample, transformer block x2      width embed_dims[3]
    head         mean over pixels, spike, linear, mean over time
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from psvit.errors import UserError
from psvit.models.base import SpikingTransformer, check_heads, spread_drop_path
from psvit.models.blocks import (
    MLP,
    Downsample,
    Head,
    ResidualBlock,
    SepConv,
    SpikeDrivenSelfAttention,
)

STAGES = ("stage1a", "stage1b", "stage2", "stage3", "stage4")


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
        time_steps: int = 4,
        strides: Sequence[int] = (2, 2, 2, 2, 1),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(time_steps)
        check_stages(embed_dims, depth, strides, image_size)
        widths = [embed_dims[0] // 2, *embed_dims]
        rates = iter(spread_drop_path(drop_path_rate, sum(depth)))
        channels = in_channels
        for index, stage in enumerate(STAGES):
            width = widths[index]
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            layers["downsample"] = Downsample(
                channels, width, kernel_size=3 if index else 7, stride=strides[index], spiking=index > 0
            )
            for block in range(depth[index]):
                make = convolution_block if index < 3 else transformer_block
                layers[f"block{block + 1}"] = make(width, mlp_ratio, num_heads, next(rates))
            self.add_module(stage, nn.Sequential(layers))
            channels = width
        self.init_weights()
        self.head = Head(channels, num_classes)


def convolution_block(width: int, mlp_ratio: float, _num_heads: int, drop_path_rate: float) -> nn.Module:
    hidden = int(width * mlp_ratio)
    return ResidualBlock(
        "sep_conv", SepConv(width, 2 * width), MLP(width, hidden, kernel_size=3, bias=False), drop_path_rate
    )


def transformer_block(width: int, mlp_ratio: float, num_heads: int, drop_path_rate: float) -> nn.Module:
    check_heads(width, num_heads)
    attention = SpikeDrivenSelfAttention(width, num_heads)
    return ResidualBlock("attn", attention, MLP(width, int(width * mlp_ratio)), drop_path_rate)


def check_stages(
    embed_dims: Sequence[int], depth: Sequence[int], strides: Sequence[int], image_size: int
) -> None:
    """Raise a UserError for stage lists that do not fit together or do not fit the image."""
    for option, value, length in (
        ("model.embed_dims", embed_dims, 4), ("model.depth", depth, 5), ("model.strides", strides, 5)
    ):
        if len(value) != length or min(value) < 1:
            raise UserError(option, list(value), f"expected {length} positive whole numbers")
    if embed_dims[0] % 2:
        raise UserError("model.embed_dims", list(embed_dims), "the first width must be even")
    reduction = 1
    for stride in strides:
        reduction *= stride
    if image_size < 2 * reduction or image_size % reduction:
        smallest = 2 * reduction
        raise UserError(
            "model.image_size", image_size,
            f"the stages shrink the image {reduction} times: give a multiple of {reduction}, at "
            f"least {smallest} (dataset.image_size), or smaller model.strides",
        )
