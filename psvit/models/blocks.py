"""Blocks shared by the networks; each declares the channel groups it holds, beside its forward.

Legend: T time steps, B batch, C channels, H x W pixels, N = H·W tokens. Blocks take and give
``[T, B, C, H, W]``. Widths come from modules and tensors, so a pruned block runs the same code.
"""

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.neurons import LIF


def per_step(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply stateless layers to every time step: ``[T, B, ...]`` -> ``[T, B, ...]``."""
    steps = x.shape[:2]
    x = x.flatten(0, 1)
    for layer in layers:
        x = layer(x)
    return x.unflatten(0, steps)


class DropPath(nn.Module):
    """Stochastic depth that drops a sample's branch at all time steps together."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x_TBCHW
        return drop_path(x_TBCHW.transpose(0, 1), self.rate, True).transpose(0, 1)


class Downsample(nn.Module):
    """(Spike,) strided convolution, BN: enters a stage. The stem has no neuron: it sees pixels."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, spiking: bool):
        super().__init__()
        self.neuron = LIF() if spiking else nn.Identity()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return per_step(self.neuron(x), self.conv, self.bn)


class SepConv(nn.Module):
    """Spiking separable convolution: pointwise to the hidden channels, depthwise, pointwise back."""

    def __init__(self, channels: int, hidden: int, kernel_size: int = 7):
        super().__init__()
        self.neuron1 = LIF()
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.neuron2 = LIF()
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False
        )
        self.conv2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = per_step(self.neuron1(x), self.conv1, self.bn1)
        return per_step(self.neuron2(x), self.depthwise, self.conv2, self.bn2)

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "hidden", "hidden", self.conv1.out_channels,
                producers=("conv1", "bn1", "depthwise"), consumers=("conv2",),
            )
        ]


class MLP(nn.Module):
    """Two spiking convolutions: 1x1 in transformer blocks, 3x3 in convolution blocks."""

    def __init__(self, channels: int, hidden: int, kernel_size: int = 1, bias: bool = True):
        super().__init__()
        padding = kernel_size // 2
        self.neuron1 = LIF()
        self.conv1 = nn.Conv2d(channels, hidden, kernel_size, padding=padding, bias=bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.neuron2 = LIF()
        self.conv2 = nn.Conv2d(hidden, channels, kernel_size, padding=padding, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = per_step(self.neuron1(x), self.conv1, self.bn1)
        return per_step(self.neuron2(x), self.conv2, self.bn2)

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "hidden", "hidden", self.conv1.out_channels,
                producers=("conv1", "bn1"), consumers=("conv2",),
            )
        ]


class RepConv(nn.Module):
    """Re-parameterisable 3x3 convolution and BN: pointwise, BN, depthwise 3x3, pointwise, BN, BN.

    No neuron stands inside, so that at inference it can become one 3x3 convolution. The depthwise
    convolution's border is what BN makes of a zero pixel, not zero; it follows its channel.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, groups=in_channels, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self._pad(self.bn1(self.conv1(x_BCHW)))
        return self.bn3(self.bn2(self.conv2(self.depthwise(x))))

    def _pad(self, x_BCHW: Tensor) -> Tensor:
        bn = self.bn1
        scale = bn.weight.detach() * torch.rsqrt(bn.running_var + bn.eps)
        border = (bn.bias.detach() - bn.running_mean * scale).view(1, -1, 1, 1)
        padded = F.pad(x_BCHW, (1, 1, 1, 1))
        inside = F.pad(x_BCHW.new_ones(1, 1, *x_BCHW.shape[2:]), (1, 1, 1, 1))
        return padded + border * (1.0 - inside)

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "hidden", "hidden", self.conv1.out_channels,
                producers=("conv1", "bn1", "depthwise"), consumers=("conv2",),
            )
        ]


class SpikeDrivenSelfAttention(nn.Module):
    """SDSA-3: binary query, key and value; (Q (KᵀV)) · scale, a neuron, the projection.

    Spike-driven Transformer V2 (arXiv 2404.03663), eq. 11 and fig. 2. ``scale`` is a constant of
    the trained network: pruning channels of a head must not change it.
    """

    def __init__(self, channels: int, num_heads: int, scale: float = 0.125):
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.neuron = LIF()
        self.query, self.key, self.value = (RepConv(channels, channels) for _ in range(3))
        self.query_neuron, self.key_neuron, self.value_neuron = LIF(), LIF(), LIF()
        self.attention_neuron = LIF(v_threshold=0.5)
        self.projection = RepConv(channels, channels)

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        x = self.neuron(x_TBCHW)
        q = self._heads(self.query_neuron(per_step(x, self.query)))
        k = self._heads(self.key_neuron(per_step(x, self.key)))
        v = self._heads(self.value_neuron(per_step(x, self.value)))
        # [.., C_v, N] = (K Vᵀ)ᵀ Q: the linear-in-N order
        attention = (v @ k.transpose(-1, -2)) @ q * self.scale
        attention = attention.flatten(2, 3).unflatten(-1, x.shape[-2:])
        return per_step(self.attention_neuron(attention), self.projection)

    def _heads(self, x_TBCHW: Tensor) -> Tensor:
        """``[T, B, C, H, W]`` -> ``[T, B, heads, C / heads, N]``."""
        return x_TBCHW.flatten(3).unflatten(2, (self.num_heads, -1))

    def channel_groups(self) -> list[ChannelGroup]:
        def outputs(*names: str) -> tuple[str, ...]:
            return tuple(f"{n}.{part}" for n in names for part in ("conv2", "bn2", "bn3"))

        return [
            ChannelGroup(
                "query_key", "query_key", self.query.conv2.out_channels, heads=self.num_heads,
                producers=outputs("query", "key"), silenced=("query.bn3",),
            ),
            ChannelGroup(
                "value", "value", self.value.conv2.out_channels, heads=self.num_heads,
                producers=outputs("value"), consumers=("projection.conv1",),
            ),
        ]


class ResidualBlock(nn.Module):
    """x + mixer(x), then x + mlp(x): a convolution block or a transformer block."""

    def __init__(self, mixer_name: str, mixer: nn.Module, mlp: nn.Module, drop_path_rate: float = 0.0):
        super().__init__()
        self.add_module(mixer_name, mixer)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)
        self._mixer_name = mixer_name

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(getattr(self, self._mixer_name)(x))
        return x + self.drop_path(self.mlp(x))


class Head(nn.Module):
    """Mean over the pixels, spike, linear classifier, mean over time: ``[T, B, C, H, W]`` -> ``[B, classes]``."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.neuron = LIF()
        self.fc = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.neuron(x.flatten(3).mean(3))).mean(0)
