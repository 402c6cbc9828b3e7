"""The same network for inference only: fewer and faster layers, the same answers."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from psvit.models.layers import RepConv
from psvit.neurons import reset_state

# multiplications of a 1x1 convolution behind which oneDNN is the faster on a CPU (docs/speed.md)
_LARGE = 2**23

if torch.ops.aten.mkldnn_convolution not in flop_registry:
    # torch's counter of operations knows the convolution by its other name only

    @register_flop_formula(torch.ops.aten.mkldnn_convolution)
    def _flops(x_shape, w_shape, *args, out_shape, **kwargs) -> int:
        return conv_flop_count(x_shape, w_shape, out_shape)


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode that computes the same logits faster.

    - A BN behind a convolution becomes part of its weights, where a block says that nothing else
      reads the convolution (``batch_norms``).
    - The chain inside a ``RepConv`` becomes three convolutions that pad with zeros. It is not made
      one 3x3 convolution: that takes 9 in·out multiplications a pixel where the chain takes
      hidden·(in + 9 + out), so of every network here more than four times as many.
    - Convolutions are in channels-last memory order, and 1x1 convolutions go to the library that
      is the fastest for their size (``Pointwise``).

    Modules keep their paths and the network its channel groups, so that a plan masks the copy as
    it masks ``model``. ``model`` is left as it is, but for its membrane potentials: they are reset.
    Logits are equal up to the rounding of the weights' type.
    """
    reset_state(model)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    for block in list(network.modules()):
        for convolution, batch_norm in getattr(block, "batch_norms", ()):
            _fold(block, convolution, batch_norm)
        if isinstance(block, RepConv) and block.conv1.bias is not None:
            block.border_to_bias_()
        for name, child in list(block.named_children()):
            if type(child) is nn.Conv2d and Pointwise.can_be(child):
                setattr(block, name, Pointwise.of(child))
    return network.to(memory_format=torch.channels_last)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that, on the CPU, takes the faster of two ways.

    With one thread torch multiplies fewer than 16 images one by one, by a general matrix product.
    Convolutions of ``_LARGE`` multiplications and more go to oneDNN instead, which takes 0.9 of
    that time with AVX2 and 0.45 with AVX-512; in smaller ones the call costs more than that saves,
    and few pixels are one matrix product over all images.
    """

    @staticmethod
    def can_be(conv: nn.Conv2d) -> bool:
        """Whether the layer is a matrix product over the channels of each pixel."""
        ones = conv.kernel_size == conv.stride == (1, 1)
        return ones and conv.padding == (0, 0) and conv.groups == 1

    @staticmethod
    def of(conv: nn.Conv2d) -> "Pointwise":
        """The same layer, with the same parameters."""
        with torch.device("meta"):
            layer = Pointwise(conv.in_channels, conv.out_channels, 1)
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.device.type != "cpu":
            return super().forward(x_BCHW)
        images, _, height, width = x_BCHW.shape
        large = images * height * width * self.weight.numel() >= _LARGE
        if large and x_BCHW.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            return torch.mkldnn_convolution(
                x_BCHW, self.weight, self.bias, (0, 0), self.stride, self.dilation, self.groups
            )
        if images >= 16 and height * width >= 64:
            return super().forward(x_BCHW)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.linear(x_BHWC, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def _fold(block: nn.Module, convolution: str, batch_norm: str) -> None:
    conv, bn = getattr(block, convolution), getattr(block, batch_norm)
    if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None:
        return
    dtype = conv.weight.dtype
    # in float64, so that folding rounds once
    folded = fuse_conv_bn_eval(conv.double(), bn.double()).to(dtype)
    setattr(block, convolution, folded.requires_grad_(False))
    setattr(block, batch_norm, nn.Identity())
