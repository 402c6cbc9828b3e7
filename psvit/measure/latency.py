"""How long networks take, one against another.

What else a machine does changes its speed by more than pruning may gain, and changes it from minute
to minute. So the networks take turns, round by round, and a speed-up is the median over the rounds
of the ratio within one round.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn


@torch.inference_mode()
def time_networks(
    networks: Mapping[str, nn.Module],
    images: Tensor,
    batch_sizes: Sequence[int],
    repeats: int,
    warmup: int,
) -> pd.DataFrame:
    """Latency and throughput of networks that run in turn, in evaluation mode.

    Args:
        networks: name -> network, all on the device of ``images``; the first is the base network.
        images: ``[N, C, H, W]`` or ``[N, T, C, H, W]``; where a batch is larger, they are repeated.
        batch_sizes: images in a call.
        repeats: timed rounds, of one call of every network.
        warmup: rounds before them that are not timed.

    Returns:
        A row a network and batch size: ``network``, ``batch_size``, ``latency_ms`` (median time of
        a call), ``latency_q1_ms`` and ``latency_q3_ms`` (quartiles), ``throughput`` (images a
        second at the median), ``speedup`` (median over the rounds of the base network's time over
        this one's) with its quartiles, ``rounds``, ``threads`` and ``device``.
    """
    rows = []
    for network in networks.values():
        network.eval()
    for size in batch_sizes:
        batch = images[torch.arange(size, device=images.device) % len(images)]
        for _ in range(warmup):
            for network in networks.values():
                network(batch)
        took: dict[str, list[float]] = {name: [] for name in networks}
        for number in range(repeats):
            # a machine that slows down within a round does not slow the same network every time
            order = list(networks) if number % 2 == 0 else list(networks)[::-1]
            for name in order:
                took[name].append(seconds_of(partial(networks[name], batch)))
        base = took[next(iter(networks))]
        for name, times in took.items():
            q1, median, q3 = _quartiles(times)
            slow, speedup, fast = _quartiles([b / t for b, t in zip(base, times, strict=True)])
            rows.append(
                {
                    "network": name,
                    "batch_size": size,
                    "latency_ms": 1e3 * median,
                    "latency_q1_ms": 1e3 * q1,
                    "latency_q3_ms": 1e3 * q3,
                    "throughput": size / median,
                    "speedup": speedup,
                    "speedup_q1": slow,
                    "speedup_q3": fast,
                    "rounds": repeats,
                    "threads": torch.get_num_threads(),
                    "device": _device_name(images.device),
                }
            )
    return pd.DataFrame(rows)


def seconds_of(run: Callable[[], object]) -> float:
    """Time of one call, with what it left to the GPU."""
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
