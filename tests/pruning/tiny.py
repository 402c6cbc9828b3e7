"""For the tests of importances: networks of a few numbers, and what goes through a network."""

import torch
from torch import nn

from psvit.channels import ChannelGroup


def score(importance, statistic, network, group, batches, scope="all"):
    return importance(network, group, scope, statistic(network, [group], batches, scope=scope))


def recorded(network, path, images):
    """What the module ``path`` gives for all images at once: ``[T, B, C, H, W]``."""
    outputs = []
    module = network.get_submodule(path)
    handle = module.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        network(images)
    handle.remove()
    output = outputs[0]
    if path.endswith("attention_neuron"):
        # [T, B, heads, C / heads, N], N of 4 x 4
        return output.flatten(2, 3).unflatten(-1, (4, 4))
    return output if output.dim() == 5 else output.unflatten(0, (-1, len(images)))


class Smooth(nn.Module):
    """A network whose loss can be differenced: two convolutions, batch norm, no spikes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1)
        nn.init.normal_(self.bn1.weight)
        nn.init.normal_(self.bn1.bias)
        nn.init.normal_(self.bn1.running_mean)
        self.double().eval()

    def forward(self, x):
        x = self.bn1(self.conv1(x)).sigmoid()
        return self.conv2(self.depthwise(x).tanh()).tanh().mean((2, 3)) * 9

    group = ChannelGroup("g", "hidden", 4, ("conv1", "bn1", "depthwise"), ("conv2",))
    halves = ChannelGroup("h", "head", 2, ("conv1", "bn1", "depthwise"), ("conv2",))


class Echo(nn.Module):
    """Its two channels are the image's, and one reader reads them."""

    def __init__(self):
        super().__init__()
        self.read = nn.Conv2d(2, 3, 1)
        self.double()

    def forward(self, x):
        return self.read(x).mean((2, 3))
