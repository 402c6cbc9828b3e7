"""``python -m psvit.models``: every network's name, parameters, and MACs at its resolution."""

import argparse
import sys
from typing import Any

import torch
import yaml
from torch import nn

from psvit.measure.operations import count_macs
from psvit.models.factory import create_model, model_names
from psvit.suggest import CONF

# what a dataset says; a network for small images is shown as the default one, digits, has it
DATASETS: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "image_size": 32}

HEADER = """The networks of model=NAME. Published ones have the pixels and classes of their paper;
small ones, marked *, those of dataset=digits. Another dataset changes both.
"""


def shown(name: str) -> tuple[nn.Module, bool]:
    """The network as ``model=NAME`` makes it, without weights, and whether it is a small one.

    It is one where ``conf/model`` has other values than the network is registered with.
    """
    with torch.device("meta"):
        network = create_model(name)
        given = _configured(name)
        if all(network.spec[option] == value for option, value in given.items()):
            return network, False
        return create_model(**given, **DATASETS), True


def _configured(name: str) -> dict[str, Any]:
    path = CONF / "model" / f"{name}.yaml"
    given = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return {option: value for option, value in given.items() if option not in DATASETS}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each network; returns the exit status."""
    argparse.ArgumentParser(prog="python -m psvit.models", description=__doc__).parse_args(
        arguments
    )
    print(HEADER)
    print(f"{'name':<22}{'parameters (M)':>15}{'MACs (G)':>10}{'T':>4}{'pixels':>8}{'classes':>9}")
    for name in model_names():
        network, small = shown(name)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        spec, macs = network.spec, count_macs(network) / 1e9
        print(
            f"{name + ' *' * small:<22}{parameters / 1e6:>15.{3 if small else 2}f}"
            f"{macs:>10.{3 if small else 2}f}"
            f"{spec['time_steps']:>4}{spec['image_size']:>8}{spec['num_classes']:>9}"
        )
    print("\nMACs of one image: all time steps, every input taken for dense, attention included.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
