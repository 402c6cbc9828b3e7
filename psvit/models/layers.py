"""Stateless layers that the blocks are made of.

Legend: T time steps, B batch, C channels, H x W pixels, N = H·W tokens.
"""

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.models.ports import Ports


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


def max_pool(stride: int) -> nn.Module:
    """The 3x3 maximum over spikes or currents with which patch embeddings shrink the image."""
    return nn.MaxPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()


class ConvBN(nn.Module):
    """1x1 convolution and BN: the query, key, value or projection of an attention."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.bn(self.conv(x_BCHW))

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv",), writes=("conv", "bn"))


class RepConv(nn.Module):
    """Re-parameterisable 3x3 convolution and BN: pointwise, BN, depthwise 3x3, pointwise, BN, BN.

    The depthwise convolution's border is what BN makes of a zero pixel, not zero; it follows its
    channel. No neuron stands inside, so for inference the chain is three convolutions.
    """

    batch_norms = (("conv1", "bn1"), ("conv2", "bn2"), ("conv2", "bn3"))

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, groups=in_channels, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x_BCHW))
        if isinstance(self.bn1, nn.BatchNorm2d):
            x = self._pad(x)
        return self.bn3(self.bn2(self.conv2(self.depthwise(x))))

    def _pad(self, x_BCHW: Tensor) -> Tensor:
        bn = self.bn1
        scale = bn.weight.detach() * torch.rsqrt(bn.running_var + bn.eps)
        border = (bn.bias.detach() - bn.running_mean * scale).view(1, -1, 1, 1)
        padded = F.pad(x_BCHW, (1, 1, 1, 1))
        inside = F.pad(x_BCHW.new_ones(1, 1, *x_BCHW.shape[2:]), (1, 1, 1, 1))
        return padded + border * (1.0 - inside)

    def border_to_bias_(self) -> None:
        """With BN folded into ``conv1``: pad with zeros, exactly, as the border moves into a bias.

        What BN adds everywhere and what stands at the border are one constant a channel; the
        depthwise convolution makes of it another, which becomes its bias.
        """
        constant, self.conv1.bias = self.conv1.bias, None
        kernel_sums = self.depthwise.weight.double().sum((1, 2, 3))
        bias = (constant.double() * kernel_sums).to(constant.dtype)
        self.depthwise.bias = nn.Parameter(bias, requires_grad=False)
        self.depthwise.padding = (1, 1)

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv1",), writes=("conv2", "bn2", "bn3"))

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "hidden",
                "hidden",
                self.conv1.out_channels,
                producers=("conv1", "bn1", "depthwise"),
                consumers=("conv2",),
            )
        ]
