"""Structured against unstructured pruning at the same number of parameters: accuracy and latency.

    python experiments/unstructured.py RUN_FOLDER...

Of the base network as many weights of the smallest magnitude are set to zero, over all convolutions
and linear layers at once, as the run's pruned network has fewer parameters (global magnitude
pruning, arXiv 2003.03033). Both are tested on the run's test images, without fine-tuning, and timed
in turn with the base network: zeros that ordinary hardware multiplies save it no time.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured, remove

from psvit.data import create_data
from psvit.errors import UserError
from psvit.inference import optimize_for_inference
from psvit.measure.accuracy import evaluate
from psvit.measure.footprint import memory_saving, parameters
from psvit.measure.latency import time_networks
from psvit.pruning import checkpoint

HEAD = "| saving % | network | parameters | not zero | top-1 % | drop (points) | speed-up |"


def zeroed(network: nn.Module, weights: int) -> nn.Module:
    """A copy of ``network`` with the ``weights`` smallest weights of its layers set to zero."""
    network = copy.deepcopy(network)
    layers = [
        (module, "weight")
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    global_unstructured(layers, pruning_method=L1Unstructured, amount=weights)
    for layer, name in layers:
        remove(layer, name)
    return network


def compare(run: Path, repeats: int, batch: int) -> list[str]:
    """Rows of the table: the base network, zeroed, and physically smaller."""
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    data = create_data(cfg.dataset, cfg.seed)
    base, _ = checkpoint.load(Path(cfg.ckpt_path or run / "base"))
    networks = {"base": base}
    for name in ("pruned", "recovered"):
        if (run / name).is_dir():
            networks[f"structured, {name}"], _ = checkpoint.load(run / name)
    fewer = parameters(base) - parameters(networks["structured, pruned"])
    networks["unstructured"] = zeroed(base, fewer)
    times = time_networks(
        {name: optimize_for_inference(network.eval()) for name, network in networks.items()},
        next(iter(data.test_dataloader()))[0],
        [batch],
        repeats,
        warmup=1,
    ).set_index("network")
    found = {
        name: evaluate(network, data.test_dataloader(), torch.device("cpu")).top1
        for name, network in networks.items()
    }
    rows = []
    for name, network in networks.items():
        left = sum(int(tensor.count_nonzero()) for tensor in network.parameters())
        saving = memory_saving(
            left if name == "unstructured" else parameters(network), parameters(base)
        )
        rows.append(
            f"| {100 * saving:.1f} | {name} | {parameters(network):,} | {left:,} "
            f"| {found[name]:.2f} | {found['base'] - found[name]:.2f} "
            f"| {times.at[name, 'speedup']:.2f} |"
        )
    return rows


def main() -> int:
    """Print the table of all the runs; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="+", type=Path, help="folder of a run with a pruned network")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    parser.add_argument("--batch", type=int, default=32, help="images in a call")
    options = parser.parse_args()
    print(HEAD)
    print("|" + "---:|" * HEAD.count(" | ") + "---:|")
    try:
        for run in options.run:
            if not (run / "pruned").is_dir():
                raise UserError("run", run, "expected the folder of a run with a pruned network")
            print("\n".join(compare(run, options.repeats, options.batch)), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
