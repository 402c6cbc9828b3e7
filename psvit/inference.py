"""The same network for inference only: fewer and faster layers, the same answers."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from psvit.models.layers import RepConv
from psvit.neurons import reset_state


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode that computes the same logits faster.

    - A BN behind a convolution becomes part of its weights, where a block says that nothing else
      reads the convolution (``batch_norms``).
    - The chain inside a ``RepConv`` becomes three convolutions that pad with zeros. It is not made
      one 3x3 convolution: that takes 9 in·out multiplications a pixel where the chain takes
      hidden·(in + 9 + out), so of every network here more than four times as many.
    - Convolutions are in channels-last memory order, and 1x1 convolutions matrix products where
      that is faster (``Pointwise``).

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
    """A 1x1 convolution, on the CPU one matrix product of all pixels where that is faster.

    With one thread torch runs 1x1 convolutions of fewer than 16 images image by image, and its
    library for the others loses on images of a few pixels.
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
        few = len(x_BCHW) < 16 or x_BCHW.shape[2] * x_BCHW.shape[3] < 64
        if not few or x_BCHW.device.type != "cpu":
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
