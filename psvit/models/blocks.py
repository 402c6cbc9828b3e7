"""Blocks shared by the networks; each declares its channels beside its forward.

``channel_groups()`` are the channels inside a block, ``residual_ports()`` where it meets the
residual stream, ``batch_norms`` the convolutions whose output only a BN reads: (convolution, BN)
pairs, each one convolution in inference. Blocks take and give ``[T, B, C, H, W]`` (T time steps,
B batch, C channels, H x W pixels). Widths come from modules and tensors, so a pruned block runs
the same code.

Two kinds of shortcut: most networks add membrane currents, so that a neuron stands before every
layer; Spikformer and QKFormer add spikes, so that a neuron stands behind every layer
(``adds_spikes``).
"""

from collections.abc import Callable

from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.models.layers import DropPath, max_pool, per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF

MakeNeuron = Callable[[], nn.Module]


class Downsample(nn.Module):
    """(Neuron,) strided convolution, BN: enters a stage. The stem has no neuron: it sees pixels."""

    batch_norms = (("conv", "bn"),)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        neuron: MakeNeuron = nn.Identity,
    ):
        super().__init__()
        self.neuron = neuron()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return per_step(self.neuron(x), self.conv, self.bn)

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv",), writes=("conv", "bn"), residual=False)


class PatchConv(nn.Module):
    """(Neuron, pooling,) 3x3 convolution, BN (, pooling): a step of spiking patch splitting (SPS).

    Args:
        pool_before: stride of the maximum over spikes that the convolution reads; 1 for none.
        pool_after: stride of the maximum over its currents.
    """

    batch_norms = (("conv", "bn"),)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        neuron: MakeNeuron = nn.Identity,
        pool_before: int = 1,
        pool_after: int = 1,
    ):
        super().__init__()
        self.neuron = neuron()
        self.pool_before = max_pool(pool_before)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.pool_after = max_pool(pool_after)

    def forward(self, x: Tensor) -> Tensor:
        return per_step(self.neuron(x), self.pool_before, self.conv, self.bn, self.pool_after)

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv",), writes=("conv", "bn"), residual=False)


class SepConv(nn.Module):
    """Spiking separable convolution: pointwise to the hidden channels, depthwise, pointwise back.

    Args:
        spiking_depthwise: BN and a neuron behind the depthwise convolution (E-SpikeFormer).
    """

    batch_norms = (("conv1", "bn1"), ("depthwise", "depthwise_bn"), ("conv2", "bn2"))

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel_size: int = 7,
        neuron: MakeNeuron = LIF,
        spiking_depthwise: bool = False,
    ):
        super().__init__()
        self.neuron1 = neuron()
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.neuron2 = neuron()
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False
        )
        self.depthwise_bn = nn.BatchNorm2d(hidden) if spiking_depthwise else nn.Identity()
        self.neuron3 = neuron() if spiking_depthwise else nn.Identity()
        self.conv2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = per_step(self.neuron1(x), self.conv1, self.bn1)
        x = per_step(self.neuron2(x), self.depthwise, self.depthwise_bn)
        return per_step(self.neuron3(x), self.conv2, self.bn2)

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv1",), writes=("conv2", "bn2"))

    def channel_groups(self) -> list[ChannelGroup]:
        producers = ["conv1", "bn1", "depthwise"]
        if isinstance(self.depthwise_bn, nn.BatchNorm2d):
            producers.append("depthwise_bn")
        return [
            ChannelGroup(
                "hidden",
                "hidden",
                self.conv1.out_channels,
                producers=tuple(producers),
                consumers=("conv2",),
            )
        ]


class MLP(nn.Module):
    """Two spiking convolutions: 1x1 in transformer blocks, 3x3 in convolution blocks."""

    batch_norms = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel_size: int = 1,
        bias: bool = True,
        neuron: MakeNeuron = LIF,
        adds_spikes: bool = False,
    ):
        super().__init__()
        padding = kernel_size // 2
        self.adds_spikes = adds_spikes
        self.neuron1 = neuron()
        self.conv1 = nn.Conv2d(channels, hidden, kernel_size, padding=padding, bias=bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.neuron2 = neuron()
        self.conv2 = nn.Conv2d(hidden, channels, kernel_size, padding=padding, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.adds_spikes:
            x = self.neuron1(per_step(x, self.conv1, self.bn1))
            return self.neuron2(per_step(x, self.conv2, self.bn2))
        x = per_step(self.neuron1(x), self.conv1, self.bn1)
        return per_step(self.neuron2(x), self.conv2, self.bn2)

    def residual_ports(self) -> Ports:
        return Ports(reads=("conv1",), writes=("conv2", "bn2"))

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


class ResidualBlock(nn.Module):
    """x + branch(x) for each branch in turn: a convolution block or a transformer block."""

    def __init__(self, drop_path_rate: float, **branches: nn.Module):
        super().__init__()
        self.branches = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.branches:
            x = x + self.drop_path(getattr(self, name)(x))
        return x

    def residual_ports(self) -> Ports:
        return Ports.joined(
            getattr(self, name).residual_ports().within(name) for name in self.branches
        )


class Head(nn.Module):
    """Mean over pixels, neuron, linear, mean over time: ``[T, B, C, H, W]`` -> ``[B, classes]``.

    Args:
        init_std: of the classifier's weights at the start. Published: 0.02, through which hardly a
            gradient comes to the blocks of a LIF network in the first epochs.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        neuron: MakeNeuron = LIF,
        init_std: float = 0.2,
    ):
        super().__init__()
        self.neuron = neuron()
        self.fc = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.neuron(x.flatten(3).mean(3))).mean(0)

    def residual_ports(self) -> Ports:
        return Ports(reads=("fc",), residual=False)
