"""``python -m psvit.models``: every network's name, parameters, and MACs at its resolution."""

import torch

from psvit.measure.operations import count_macs
from psvit.models.factory import create_model, model_names


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
