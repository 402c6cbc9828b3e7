"""The same network for inference only: fewer and faster layers, the same answers."""

import copy
from collections import Counter
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from psvit.models.layers import RepConv
from psvit.neurons import reset_state

# multiplications of a 1x1 convolution behind which oneDNN is the faster on a CPU (docs/speed.md)
_LARGE = 2**23
# multiplications of a convolution behind which ordered weights save more than the call costs
_WORTH_PACKING = 2**21

if torch.ops.aten.mkldnn_convolution not in flop_registry:
    # torch's counter of operations knows the convolution by its other name only

    @register_flop_formula(torch.ops.aten.mkldnn_convolution)
    def _flops(x_shape, w_shape, *args, out_shape, **kwargs) -> int:
        return conv_flop_count(x_shape, w_shape, out_shape)


def optimize_for_inference(model: nn.Module, packed: bool = False) -> nn.Module:
    """A copy of ``model`` in evaluation mode that computes the same logits faster.

    - A BN behind a convolution becomes part of its weights, where a block says that nothing else
      reads the convolution (``batch_norms``), and the BN reads nothing else.
    - The chain inside a ``RepConv`` becomes three convolutions that pad with zeros. It is not made
      one 3x3 convolution: that takes 9 in·out multiplications a pixel where the chain takes
      hidden·(in + 9 + out), so of every network here more than four times as many.
    - Convolutions are in channels-last memory order, and 1x1 convolutions go to the library that
      is the fastest for their size (``Convolution``).

    Modules keep their paths and the network its channel groups, so that a plan masks the copy as
    it masks ``model``. ``model`` is left as it is, but for its membrane potentials: they are reset.
    Logits are equal up to the rounding of the weights' type.

    Args:
        model: the network.
        packed: convolutions on the CPU also keep their weights in the library's own order
            (``Convolution``). For a network that stays as it is and sees batches of one size:
            single small images take two thirds to nine tenths of the time (docs/speed.md), and
            the weights twice the memory.
    """
    reset_state(model)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    # by every path: a layer may lie in several containers, and is masked by one of its paths
    held = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    for block in list(network.modules()):
        pairs = getattr(block, "batch_norms", ())
        read = Counter(batch_norm for _, batch_norm in dict.fromkeys(pairs))
        for convolution, batch_norm in pairs:
            # none of those that folding has put there is held twice
            if held[getattr(block, convolution)] <= 1 and read[batch_norm] == 1:
                _fold(block, convolution, batch_norm)
        if isinstance(block, RepConv) and block.conv1.bias is not None:
            block.border_to_bias_()
    faster: dict[nn.Module, nn.Module] = {}
    for path, layer in list(network.named_modules(remove_duplicate=False)):
        if is_pointwise(layer) or (packed and _pads_with_zeros(layer)):
            if layer not in faster:
                faster[layer] = Convolution.of(layer, packed)
            block, _, name = path.rpartition(".")
            setattr(network.get_submodule(block), name, faster[layer])
    return network.to(memory_format=torch.channels_last)


class Convolution(nn.Conv2d):
    """A convolution that, on the CPU, takes the fastest of the library's ways to the same answer.

    With one thread torch multiplies fewer than 16 images of a 1x1 convolution one by one, by a
    general matrix product. Those of ``_LARGE`` multiplications and more go to oneDNN instead, which
    takes 0.9 of that time with AVX2 and 0.45 with AVX-512; in smaller ones the call costs more than
    that saves, and few pixels are one matrix product over all images.

    oneDNN puts the weights in order anew in each call, of any kernel; where images are few and
    small that takes as long as the products. ``packed`` keeps them so, from the first call for
    images of a shape on, and until they change.

    Attributes:
        pointwise: whether it is a matrix product over the channels of each pixel.
        packed: whether ordered weights are kept.
    """

    pointwise: bool
    packed: bool

    @classmethod
    def of(cls, conv: nn.Conv2d, packed: bool) -> Self:
        """The same layer, with the same parameters."""
        shape = conv.in_channels, conv.out_channels, conv.kernel_size
        with torch.device("meta"):
            layer = cls(*shape, conv.stride, conv.padding, conv.dilation, conv.groups)
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.pointwise, layer.packed = is_pointwise(conv), packed
        return layer

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._ordered: Tensor | None = None
        # the images' shape, and the weights as they were
        self._ordered_for: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's tensors are neither copied nor stored
        return {**self.__dict__, "_ordered": None, "_ordered_for": ()}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.device.type != "cpu":
            return super().forward(x_BCHW)
        images, _, height, width = x_BCHW.shape
        pixels = images * height * width // (self.stride[0] * self.stride[1])
        products = pixels * self.weight.numel()
        onednn = x_BCHW.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if onednn and self.packed and products >= _WORTH_PACKING and self._stays:
            return self._by_ordered(x_BCHW)
        if not self.pointwise:
            return super().forward(x_BCHW)
        if onednn and products >= _LARGE:
            return torch.mkldnn_convolution(
                x_BCHW, self.weight, self.bias, (0, 0), self.stride, self.dilation, self.groups
            )
        if images >= 16 and height * width >= 64:
            return super().forward(x_BCHW)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.linear(x_BHWC, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    @property
    def _stays(self) -> bool:
        """Whether weights that change would be seen: inference mode's tensors do not tell."""
        return not torch.is_grad_enabled() and not self.weight.is_inference()

    def _by_ordered(self, x_BCHW: Tensor) -> Tensor:
        weight, place = self.weight, (self.padding, self.stride, self.dilation, self.groups)
        found = (x_BCHW.shape, weight.data_ptr(), weight._version)
        if found != self._ordered_for:
            dense = weight.detach().contiguous().to_mkldnn()
            ordered = torch._C._nn.mkldnn_reorder_conv2d_weight(dense, *place, x_BCHW.shape)
            self._ordered, self._ordered_for = ordered, found
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        return convolve(x_BCHW, self._ordered, self.bias, *place, "none", [], None)


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution, of torch's own, of each pixel over all channels."""
    if type(layer) not in (nn.Conv2d, Convolution):
        return False
    ones = layer.kernel_size == layer.stride == (1, 1)
    return ones and layer.padding == (0, 0) and layer.groups == 1


def _pads_with_zeros(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Conv2d, Convolution):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _fold(block: nn.Module, convolution: str, batch_norm: str) -> None:
    conv, bn = getattr(block, convolution), getattr(block, batch_norm)
    if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None:
        return
    dtype = conv.weight.dtype
    # in float64, so that folding rounds once; copies, as other layers may have the same weights
    exact = (copy.deepcopy(layer).double() for layer in (conv, bn))
    folded = fuse_conv_bn_eval(*exact).to(dtype)
    setattr(block, convolution, folded.requires_grad_(False))
    setattr(block, batch_norm, nn.Identity())
