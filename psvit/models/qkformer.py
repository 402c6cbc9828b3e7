"""QKFormer (arXiv 2403.16552): a hierarchy in which early stages attend to tokens in linear time.

    stem     3x3 convolution, maximum pooling                         width 1/8
    stage1   patch embedding, (x + token attention, x + MLP) x1       width 1/4
    stage2   patch embedding, (x + token attention, x + MLP) x2       width 1/2
    stage3   patch embedding, (x + SSA, x + MLP) x (depth - 3)        width 1
    head     mean over pixels, linear, mean over time

Shortcuts add spikes: a neuron stands behind every layer.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.models.attention import SpikingSelfAttention, TokenAttention
from psvit.models.base import SpikingTransformer, spread_drop_path
from psvit.models.blocks import MLP, Head, MakeNeuron, PatchConv, ResidualBlock
from psvit.models.checks import check_columnar, check_heads, check_hidden, check_scales
from psvit.models.layers import ConvBN, max_pool, per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF

MakeAttention = Callable[..., nn.Module]

# blocks of the stages with token attention; the rest of the depth is stage 3's
STAGE1, STAGE2 = 1, 2


class QKFormer(SpikingTransformer):
    """Args:
        embed_dims: width of stage 3, a multiple of 8; stages 1 and 2 have a quarter and a half.
        depth: blocks of all stages together, at least 4.
        num_heads: heads of every attention; they must divide the width of stage 1.
        image_size: pixels a side.
        num_classes: outputs.
        in_channels: 3 for images, 2 for event frames.
        time_steps: steps for which an image is shown.
        strides: down-sampling of the stem and the three patch embeddings; 1 for none.
        mlp_ratio: hidden over block width of the MLPs.
        attention_scale: factor of stage 3's Q (KᵀV), which grows with tokens and channels of a
            head: on small images the published one leaves the attention silent.
        batch_as_time: in stage 3 the neuron behind each projection runs over all steps of all
            samples as one sequence, as in the released code: what an image gives depends on the
            images before it in its batch. The released weights were trained so; False keeps
            samples apart.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.

    Raises:
        UserError: a width that the heads or the stem do not divide, too few blocks, or an image
            that the strides shrink below 2 pixels.
    """

    def __init__(
        self,
        embed_dims: int = 512,
        depth: int = 10,
        num_heads: int = 8,
        image_size: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        time_steps: int = 4,
        strides: Sequence[int] = (2, 2, 2, 2),
        mlp_ratio: float = 4.0,
        attention_scale: float = 0.125,
        batch_as_time: bool = True,
        drop_path_rate: float = 0.0,
    ):
        super().__init__(time_steps)
        check_columnar(
            embed_dims, depth, num_heads, image_size, num_classes, in_channels, strides, mlp_ratio
        )
        check_heads(embed_dims // 4, num_heads)
        check_hidden(embed_dims // 4, mlp_ratio)
        check_scales(attention_scale=attention_scale)
        if depth <= STAGE1 + STAGE2:
            raise UserError(
                "model.depth", depth, f"expected at least {STAGE1 + STAGE2 + 1}, one for stage 3"
            )
        rates = iter(spread_drop_path(drop_path_rate, depth))

        def stage(
            embedding: nn.Module, attention: MakeAttention, width: int, blocks: int
        ) -> nn.Module:
            layers: OrderedDict[str, nn.Module] = OrderedDict(embed=embedding)
            for block in range(blocks):
                layers[f"block{block + 1}"] = ResidualBlock(
                    next(rates),
                    attn=attention(
                        width,
                        num_heads,
                        adds_spikes=True,
                        make_projection=partial(ConvBN, bias=True),
                    ),
                    mlp=MLP(width, int(width * mlp_ratio), adds_spikes=True),
                )
            return nn.Sequential(layers)

        eighth, quarter, half = embed_dims // 8, embed_dims // 4, embed_dims // 2
        self.stem = PatchConv(in_channels, eighth, pool_after=strides[0])
        # the stem gives currents, the stages spikes
        self.stage1 = stage(
            PatchEmbedding(eighth, quarter, strides[1], LIF), TokenAttention, quarter, STAGE1
        )
        self.stage2 = stage(PatchEmbedding(quarter, half, strides[2]), TokenAttention, half, STAGE2)
        self.stage3 = stage(
            PatchEmbedding(half, embed_dims, strides[3]),
            partial(SpikingSelfAttention, scale=attention_scale),
            embed_dims,
            depth - STAGE1 - STAGE2,
        )
        if batch_as_time:
            for block in list(self.stage3)[1:]:
                block.attn.output_neuron = BatchAsTime(block.attn.output_neuron)
        self.init_weights()
        self.head = Head(embed_dims, num_classes, nn.Identity)


class BatchAsTime(nn.Module):
    """Run a neuron over steps and samples as one sequence: first all samples of step 0."""

    def __init__(self, neuron: nn.Module):
        super().__init__()
        self.neuron = neuron

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        return self.neuron(x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])


class PatchEmbedding(nn.Module):
    """Spiking patch embedding with a deformed shortcut (SPEDS): two convolutions, one past them.

    Args:
        stride: of the pooling in the main path and of the shortcut.
        neuron: before both paths.
    """

    batch_norms = (("conv1", "bn1"), ("conv2", "bn2"), ("shortcut", "shortcut_bn"))

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, neuron: MakeNeuron = nn.Identity
    ):
        super().__init__()
        self.neuron = neuron()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.pool = max_pool(stride)
        self.neuron1 = LIF()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.neuron2 = LIF()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.shortcut_bn = nn.BatchNorm2d(out_channels)
        self.shortcut_neuron = LIF()

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(x)
        main = self.neuron1(per_step(x, self.conv1, self.bn1, self.pool))
        main = self.neuron2(per_step(main, self.conv2, self.bn2))
        return main + self.shortcut_neuron(per_step(x, self.shortcut, self.shortcut_bn))

    def residual_ports(self) -> Ports:
        return Ports(
            reads=("conv1", "shortcut"),
            writes=("conv2", "bn2", "shortcut", "shortcut_bn"),
            residual=False,
        )

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "hidden",
                "hidden",
                self.conv1.out_channels,
                producers=("conv1", "bn1"),
                consumers=("conv2",),
            )
        ]
