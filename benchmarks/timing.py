"""Two ways to do one thing, timed in turns in one run; and the memory that a call takes."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from torch.profiler import ProfilerActivity, profile

from psvit.memory import keep_freed_memory

Timer = Callable[[], float]


@dataclass(frozen=True)
class Result:
    """A row of the table: how many times as fast, as small or as costly."""

    name: str
    # median of the repeats
    ratio: float
    # largest less smallest of the repeats
    spread: float
    # what the ratio should reach; None where nothing is promised
    target: float | None
    # the target is the most that the ratio may be
    at_most: bool = False
    # what was measured, in words
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


@dataclass(frozen=True)
class Options:
    """What every benchmark is told."""

    device: torch.device
    repeats: int
    quick: bool


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of a call: on the CPU the process's own, so that other processes do not count."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(
    name: str,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    target: float | None,
    options: Options,
    warm_up: bool = True,
    part: float = 1.0,
) -> Result:
    """How many times as fast ``ours`` is: both warmed up, then in turns.

    ``part``: the share of the work that ``theirs`` does.
    """
    with (
        _timer(theirs, options.device, keeps=False) as time_theirs,
        _timer(ours, options.device, keeps=True) as time_ours,
    ):
        if warm_up:
            time_theirs(), time_ours()
        pairs = [(time_theirs() / part, time_ours()) for _ in range(options.repeats)]
    slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
    detail = f"{1e3 * slow:,.1f} ms against {1e3 * fast:,.1f} ms"
    return result(name, [slow / fast for slow, fast in pairs], target, detail=detail)


@contextmanager
def _timer(run: Callable[[], object], device: torch.device, keeps: bool) -> Iterator[Timer]:
    """``seconds`` of ``run``, in a process of its own that handles memory as its user's does.

    ``keeps``: glibc keeps freed memory there, as ``run.py`` tells it to.
    """
    if device.type != "cpu" or torch.get_num_threads() > 1:
        # neither CUDA nor the threads of OpenMP come along into a fork
        yield partial(seconds, run, device)
        return
    context = get_context("fork")
    here, there = context.Pipe()

    def serve() -> None:
        if keeps:
            keep_freed_memory()
        while True:
            there.recv()
            there.send(seconds(run, device))

    process = context.Process(target=serve, daemon=True)
    process.start()
    # so that the end of the process ends the waiting for it
    there.close()

    def ask() -> float:
        here.send(None)
        return here.recv()

    try:
        yield ask
    finally:
        process.kill()
        process.join()


def result(name: str, ratios: list[float], target: float | None, **more: object) -> Result:
    """A row of the ratios of several repeats."""
    return Result(name, statistics.median(ratios), max(ratios) - min(ratios), target, **more)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a call holds beyond what was held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
