"""``python -m psvit.models``: every network's name, parameters, and MACs at its resolution.

MACs: multiply-accumulates of one image through all convolutions, linear layers and products of
attention, at every time step, as if every input were dense (firing rates and energy are measured
elsewhere). What precedes the first neuron is computed once. Element-wise work is not counted.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from psvit.models.factory import create_model, model_names


def count_macs(network: nn.Module) -> int:
    """MACs of one image, in the convention above; the network may lie on the meta device."""
    spec = network.spec
    pixels = spec["image_size"]
    device = next(network.parameters()).device
    image = torch.empty(1, spec["in_channels"], pixels, pixels, device=device)
    training = network.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    network.train(training)
    # the counter takes a multiply-accumulate for two operations
    return counter.get_total_flops() // 2


def main() -> None:
    print(f"{'name':<22}{'parameters (M)':>15}{'MACs (G)':>10}{'T':>4}{'pixels':>8}{'classes':>9}")
    for name in model_names():
        with torch.device("meta"):
            network = create_model(name)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        spec = network.spec
        print(
            f"{name:<22}{parameters / 1e6:>15.2f}{count_macs(network) / 1e9:>10.2f}"
            f"{spec['time_steps']:>4}{spec['image_size']:>8}{spec['num_classes']:>9}"
        )
    print("\nMACs of one image: all time steps, every input taken for dense, attention included.")


if __name__ == "__main__":
    main()
