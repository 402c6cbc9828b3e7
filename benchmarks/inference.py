"""Inference and training of the same network: ours, with spikingjelly's own neurons, compiled."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import naive, networks
from benchmarks.timing import Options, Result, compare, peak_bytes, result, seconds
from psvit.compiled import compile_neurons
from psvit.inference import optimize_for_inference
from psvit.memory import keep_freed_memory
from psvit.pruning.checkpoint import load
from psvit.training.graphs import GraphedNetwork

CIFAR10 = Path(__file__).parents[1] / "experiments" / "cifar10"
FAMILIES = (
    "meta_spikeformer_15m",
    "e_spikeformer_5m",
    "sdt_v1_8_384",
    "spikformer_8_384",
    "qkformer_10_384",
)


def inference(options: Options) -> Iterator[Result]:
    """A forward pass of one image."""
    for family in FAMILIES:
        size = 64 if options.quick else 224
        network = networks.network(family, options.device, image_size=size)
        stock, ours = naive.stock(network), optimize_for_inference(network, packed=True)
        image = networks.images(network, 1, options.device)
        with torch.inference_mode():
            row = compare(
                f"inference, {family}, {size} px",
                lambda stock=stock, image=image: stock(image),
                lambda ours=ours, image=image: ours(image),
                1.8 if family == "meta_spikeformer_15m" else None,
                options,
            )
        yield row


def training(options: Options) -> list[Result]:
    """Forward and backward pass of the main job's network: time and memory."""
    results = []
    for time_steps in (1, 2, 4):
        network = networks.small(options.device, time_steps=time_steps).train()
        batch = networks.images(network, 32, options.device)
        theirs, ours = (_step(each, batch) for each in (naive.stock(network), network))
        results.append(compare(f"training step, small, T {time_steps}", theirs, ours, 1.3, options))
        before, after = (peak_bytes(run, options.device) for run in (theirs, ours))
        name = f"training memory, small, T {time_steps}"
        detail = f"{before / 1e6:.1f} MB to {after / 1e6:.1f} MB"
        results.append(result(name, [after / before], 1.0, at_most=True, detail=detail))
        if options.device.type == "cuda":
            replayed = _step(network, batch, GraphedNetwork(network, batch))
            name = f"training step, small, T {time_steps}, as CUDA graphs"
            results.append(compare(name, theirs, replayed, None, options))
    return results


def compiled(options: Options) -> Iterator[Result]:
    """``compile=true`` against ``compile=false``: ours both, in one process, on the CPU."""
    if options.device.type != "cpu":
        return
    # no forks: what is compiled starts threads of its own
    keep_freed_memory()
    made = {
        "small, T 4": networks.small(options.device, time_steps=4),
        **{name: load(CIFAR10 / name)[0] for name in ("meta_spikeformer", "e_spikeformer")},
    }
    for name, network in made.items():
        network.to(memory_format=torch.channels_last).train()
        batch = networks.images(network, 16 if options.quick else 128, options.device)
        ratios = _compiling(_step(network, batch), options)
        yield result(f"compiled, training step, {name}, batch {len(batch)}", ratios, None)


def _compiling(run: Callable[[], object], options: Options) -> list[float]:
    """How many times as fast ``run`` is with neurons compiled, in turns."""

    def timed(wanted: bool) -> float:
        compile_neurons(wanted)
        # the second of two: the first may compile
        return [seconds(run, options.device) for _ in range(2)][1]

    timed(True)
    return [timed(False) / timed(True) for _ in range(options.repeats)]


def _step(
    network: nn.Module,
    batch: torch.Tensor,
    passes: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[], None]:
    """A step of ``network``; ``passes`` runs it, if not it itself."""
    passes = passes or network
    labels = torch.zeros(len(batch), dtype=torch.long, device=batch.device)

    def run() -> None:
        network.zero_grad()
        F.cross_entropy(passes(batch), labels).backward()

    return run
