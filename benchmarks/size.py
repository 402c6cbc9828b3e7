"""What a smaller network gains: pruned ones against their operations, and cost against size."""

import statistics
from bisect import bisect_left
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import networks
from benchmarks.timing import Options, Result, result, seconds
from psvit.inference import optimize_for_inference
from psvit.measure.footprint import memory_saving, parameters
from psvit.measure.operations import count_macs
from psvit.pruning import prune
from psvit.pruning.allocation import uniform
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import pruned_parameters

SAVINGS = (0.224, 0.4, 0.6)


def pruned(options: Options) -> Iterator[Result]:
    """The share of the MACs saved that is saved in time, at batch 1 and 32."""
    for count, size in ((1, 64 if options.quick else 224), (4 if options.quick else 32, 64)):
        base = networks.network("meta_spikeformer_15m", options.device, image_size=size)
        for round_to in (1, 8, 16):
            for saving in SAVINGS:
                small = _pruned(base, saving, round_to)
                macs = count_macs(small) / count_macs(base)
                shares = [
                    (1 - later / before) / (1 - macs)
                    for before, later in _times([base, small], count, options)
                ]
                name = f"pruned {saving:.1%}, round_to {round_to}, batch {count}, {size} px"
                detail = f"{1 - macs:.1%} of MACs saved"
                yield result(name, shares, 0.9, detail=detail)


def scaling(options: Options) -> list[Result]:
    """Time of a forward pass by width and by time steps, against the smallest."""
    base = networks.small(options.device, time_steps=1)
    others = {f"time steps x{t}": networks.small(options.device, time_steps=t) for t in (2, 4)}
    for factor in (2, 4):
        widths = [factor * width for width in networks.SMALL["embed_dims"]]
        wide = networks.small(options.device, time_steps=1, embed_dims=widths)
        others[f"width x{factor}"] = wide
    results = []
    for name, other in others.items():
        ratios = [after / before for before, after in _times([base, other], 16, options)]
        macs = count_macs(other) / count_macs(base)
        results.append(result(f"cost, {name}", ratios, None, detail=f"MACs x{macs:.2f}"))
    return results


@torch.inference_mode()
def _times(models: list[nn.Module], count: int, options: Options) -> list[tuple[float, ...]]:
    """Seconds of a forward pass of each network, in turns, of every repeat."""
    batch = networks.images(models[0], count, options.device)
    fast = [optimize_for_inference(model, packed=True) for model in models]
    for model in fast:
        model(batch)
    return [
        tuple(
            # the second of two, as the first may find the memory of the other network
            statistics.median(
                seconds(lambda model=model: model(batch), options.device) for _ in range(3)
            )
            for model in fast
        )
        for _ in range(options.repeats)
    ]


def _pruned(base: nn.Module, saving: float, round_to: int) -> nn.Module:
    """The network cut uniformly by the smallest ratio, in percent, that saves as much memory."""
    ranking = Ranking(base, round_to=round_to)

    def saved(percent: int) -> float:
        plan = uniform(ranking, percent / 100)
        return memory_saving(pruned_parameters(base, plan), parameters(base))

    percents = range(1, 100)
    return prune(base, uniform(ranking, percents[bisect_left(percents, saving, key=saved)] / 100))
