"""The networks that are measured: random weights, batch norms that know their inputs."""

import torch
from torch import Tensor, nn

from psvit.models import create_model

# conf/model/meta_spikeformer.yaml on 32 x 32 pixels: the network of the main job
SMALL = {
    "embed_dims": [16, 32, 48, 64],
    "depth": [1, 1, 1, 2, 1],
    "num_heads": 4,
    "image_size": 32,
    "num_classes": 10,
    "strides": [2, 2, 2, 1, 1],
    "attention_scale": 0.5,
}


def network(name: str, device: torch.device, **values) -> nn.Module:
    """A network whose neurons fire, in evaluation mode and in channels-last order."""
    torch.manual_seed(0)
    made = create_model(name, **values).to(device).to(memory_format=torch.channels_last)
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        # statistics of the one batch below, in place of the running average's first step
        norm.momentum = 1.0
    made.train()
    with torch.no_grad():
        made(images(made, 2, device))
    return made.eval()


def small(device: torch.device, **values) -> nn.Module:
    """The main job's network."""
    return network("meta_spikeformer", device, **{**SMALL, **values})


def images(made: nn.Module, count: int, device: torch.device) -> Tensor:
    """Random images for a network, of its type."""
    size, channels = made.spec["image_size"], made.spec["in_channels"]
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(count, channels, size, size, generator=generator)
    return batch.to(device, next(made.parameters()).dtype)


def batches(
    made: nn.Module, count: int, size: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images, with the network's own answers as labels, some of them wrong."""
    result = []
    for part in images(made, count, device).split(size):
        with torch.no_grad():
            labels = made(part).argmax(1)
        labels[::4] = 0
        result.append((part, labels))
    return result
