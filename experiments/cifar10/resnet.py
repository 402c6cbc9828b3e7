"""A network without spikes, for the spiking ones to learn from: a small ResNet for 32x32 pixels.

Eight 3x3 convolutions and a classifier, in the order of D. Page's DAWNBench entry ("How to train
your ResNet", 2018), in half its width at the end. ``model.module=experiments.cifar10.resnet
model.name=cifar10_resnet`` builds it.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from psvit.models import SpikingTransformer, register_model


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(*_convolution(width, width), *_convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class CIFARResNet(SpikingTransformer):
    """Args:
    widths: channels behind the first four convolutions; a residual pair of convolutions
        follows the second and the fourth.
    image_size: pixels a side.
    num_classes: outputs.
    in_channels: of an image.
    time_steps: 1; nothing here keeps a state.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (64, 128, 256, 256),
        image_size: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        time_steps: int = 1,
    ):
        super().__init__(time_steps)
        first, second, third, fourth = widths
        self.body = nn.Sequential(
            *_convolution(in_channels, first),
            *_convolution(first, second),
            nn.MaxPool2d(2),
            _Residual(second),
            *_convolution(second, third),
            nn.MaxPool2d(2),
            *_convolution(third, fourth),
            nn.MaxPool2d(2),
            _Residual(fourth),
        )
        self.classifier = nn.Linear(fourth, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, 3, H, W]``."""
        x = self.body(x)
        # an eighth of the logits, which are else so large that nothing is learned at first
        return 0.125 * self.classifier(F.adaptive_max_pool2d(x, 1).flatten(1))


register_model("cifar10_resnet", CIFARResNet)
