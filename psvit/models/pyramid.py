"""The five stages that Meta-SpikeFormer and E-SpikeFormer share."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from psvit.errors import UserError
from psvit.models.base import SpikingTransformer, spread_drop_path
from psvit.models.blocks import Downsample, MakeNeuron
from psvit.models.checks import check_counts, check_heads, check_hidden, check_image, check_list

STAGES = ("stage1a", "stage1b", "stage2", "stage3", "stage4")
CONVOLUTION_STAGES = STAGES[:3]

# (width, stochastic-depth rate) -> block
MakeBlock = Callable[[int, float], nn.Module]


def add_stages(
    network: SpikingTransformer,
    embed_dims: Sequence[int],
    depth: Sequence[int],
    strides: Sequence[int],
    in_channels: int,
    drop_path_rate: float,
    neuron: MakeNeuron,
    convolution_block: MakeBlock,
    transformer_block: MakeBlock,
) -> None:
    """Give ``network`` its stages: a down-sampling each, then its blocks."""
    channels = in_channels
    rates = iter(spread_drop_path(drop_path_rate, sum(depth)))
    widths = (embed_dims[0] // 2, *embed_dims)
    for stage, width, blocks, stride in zip(STAGES, widths, depth, strides, strict=True):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stage == STAGES[0]:
            layers["downsample"] = Downsample(channels, width, kernel_size=7, stride=stride)
        else:
            layers["downsample"] = Downsample(channels, width, 3, stride, neuron)
        make_block = convolution_block if stage in CONVOLUTION_STAGES else transformer_block
        for block in range(blocks):
            layers[f"block{block + 1}"] = make_block(width, next(rates))
        network.add_module(stage, nn.Sequential(layers))
        channels = width


def check_stages(
    embed_dims: Sequence[int],
    depth: Sequence[int],
    num_heads: int,
    image_size: int,
    num_classes: int,
    in_channels: int,
    strides: Sequence[int],
    mlp_ratio: float,
) -> None:
    """Raise a UserError for values that do not fit together."""
    check_list("embed_dims", embed_dims, 4)
    check_list("depth", depth, 5)
    check_list("strides", strides, 5)
    check_counts(num_classes=num_classes, in_channels=in_channels)
    if embed_dims[0] % 2:
        raise UserError("model.embed_dims", list(embed_dims), "the first width must be even")
    check_hidden(embed_dims[0] // 2, mlp_ratio)
    for width in embed_dims[2:]:
        check_heads(width, num_heads)
    check_image(image_size, strides)
