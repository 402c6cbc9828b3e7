"""Sensitivity analysis: ours against a copy cut and run whole for every point; its memory."""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks import naive, networks
from benchmarks.timing import Options, Result, compare, peak_bytes, result, seconds
from psvit.inference import optimize_for_inference
from psvit.measure.operations import count_macs
from psvit.measure.segments import macs
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity import measure_sensitivity

RATIOS = (0.1, 0.3, 0.5)


def sensitivity(options: Options) -> Iterator[Result]:
    """Time of a whole analysis; rows are asserted to be equal in float64.

    A point of the naive way takes the same time whatever its group: it is timed for some groups,
    and ours for all.
    """
    device = options.device
    small = networks.small(device)
    count = 8 if options.quick else 32
    yield _compared("small, 32 px", small, RATIOS, count, options)
    size = 64 if options.quick else 224
    large = networks.network("meta_spikeformer_15m", device, image_size=size)
    # a point of the large network takes seconds: one ratio
    yield _compared(f"15M, {size} px", large, (0.3,), 2, options)


def memory(options: Options) -> list[Result]:
    """Peak memory of an analysis, with four times the groups and with four times the images."""
    network = networks.small(options.device)

    def peak(every: int, images: int) -> int:
        batches = networks.batches(network, images, 4, options.device)
        ranking = _ranking(network, every)
        return peak_bytes(
            lambda: _ours(network, batches, (0.3,), ranking, options.device), options.device
        )

    few = peak(4, 8)
    return [
        result(name, [more / few], 1.1, at_most=True, detail=f"{few:,} bytes to {more:,}")
        for name, more in (
            ("sensitivity memory, 4 times the groups", peak(1, 8)),
            ("sensitivity memory, 4 times the images", peak(4, 32)),
        )
    ]


def _compared(
    name: str,
    network: nn.Module,
    ratios: tuple[float, ...],
    count: int,
    options: Options,
) -> Result:
    ranking, some = _ranking(network, 1), _ranking(network, 8)
    stock = naive.stock(network)
    batches = networks.batches(network, count, count, options.device)
    _check_rows(network, ratios[-1:], options)
    ours = partial(_ours, network, batches, ratios, ranking, options.device)
    row = compare(
        f"sensitivity, {name}",
        lambda: naive.sensitivity(stock, batches, ratios, some),
        ours,
        5.0,
        options,
        # on the CPU the rows above have warmed both up
        warm_up=options.device.type != "cpu",
        part=len(some.groups) / len(ranking.groups),
    )
    work, points = macs(ours), len(ranking.groups) * len(ratios)
    share = work / (points * count * count_macs(network))
    floor = work / _convolution_rate(network, batches[0][0], options)
    detail = f"{row.detail}; {share:.0%} of the operations; floor {1e3 * floor:,.1f} ms"
    return replace(row, detail=detail)


@torch.inference_mode()
def _convolution_rate(network: nn.Module, images: torch.Tensor, options: Options) -> float:
    """Multiply-accumulates a second of the network's costliest convolution."""
    calls: list[tuple[float, nn.Module, torch.Tensor]] = []

    def keep(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        calls.append((output.numel() * module.weight[0].numel(), module, args[0]))

    fast = optimize_for_inference(network)
    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(keep)
    fast(images)
    work, layer, x = max(calls, key=lambda call: call[0])
    run = partial(nn.Conv2d.forward, layer, x)
    return work / min(seconds(run, options.device) for _ in range(5))


def _ranking(network: nn.Module, every: int) -> Ranking:
    """One group of ``every``, in order through the network."""
    names = list(network.channel_groups())
    return Ranking(network, protect=[n for i, n in enumerate(names) if i % every])


def _ours(network, batches, ratios, ranking, device) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        return measure_sensitivity(
            network, batches, ratios, ranking, Path(folder) / "sensitivity.csv", device
        )


def _check_rows(network: nn.Module, ratios: tuple[float, ...], options: Options) -> None:
    """Both ways give the same accuracies and losses in float64, for some three groups."""
    if options.device.type != "cpu":
        return
    exact = copy.deepcopy(network).double()
    every = max(1, len(exact.channel_groups()) // 3)
    ranking, cpu = _ranking(exact, every), torch.device("cpu")
    batches = networks.batches(exact, 2, 2, cpu)
    expected = naive.sensitivity(naive.stock(exact), batches, ratios, ranking)
    rows = _ours(exact, batches, ratios, ranking, cpu).set_index(["group", "ratio"])
    for group, ratio, tally in expected:
        row = rows.loc[(group, ratio)]
        assert abs(row.top1 - tally.top1) < 1e-3, (group, ratio)
        assert abs(row.loss - tally.loss) < 2e-6, (group, ratio)
