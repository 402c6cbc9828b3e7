"""Timings on a clock that the test turns, so that nothing depends on the machine."""

import pytest
import torch
from torch import nn

from psvit.measure import latency
from psvit.measure.latency import time_networks

IMAGES = torch.arange(3.0)[:, None, None, None]


class Clock:
    """Stands still but for what the networks take."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Takes(nn.Module):
    """Takes the next of ``seconds`` a call, and notes who ran."""

    def __init__(self, name, clock, seconds, calls):
        super().__init__()
        self.name, self.clock, self.seconds, self.calls = name, clock, iter(seconds), calls

    def forward(self, x):
        assert not self.training and torch.is_inference_mode_enabled()
        self.calls.append((self.name, x.flatten().tolist()))
        self.clock.now += next(self.seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_quartiles_and_speedup_by_hand(clock):
    calls = []
    # one warm-up, then five rounds in which the machine becomes slower and slower
    base = Takes("base", clock, [9, 1, 2, 3, 4, 5], calls)
    pruned = Takes("pruned", clock, [9, 0.5, 1, 1.5, 2, 2], calls)
    networks = {"base": base.train(), "pruned": pruned}
    first, second = time_networks(networks, IMAGES, [4], 5, 1).to_dict("records")
    assert (first["network"], first["batch_size"], first["rounds"]) == ("base", 4, 5)
    assert (first["latency_ms"], first["throughput"]) == (3000, 4 / 3)
    assert (first["latency_q1_ms"], first["latency_q3_ms"]) == (2000, 4000)
    assert first["speedup"] == first["speedup_q1"] == first["speedup_q3"] == 1
    # every round twice as fast, the last one two and a half times
    assert (second["latency_ms"], second["speedup"], second["speedup_q3"]) == (1500, 2, 2)
    assert (first["device"], first["threads"]) == ("cpu", torch.get_num_threads())
    # in turn, the order of every second round reversed; images are repeated to fill a batch
    names = [name for name, _ in calls]
    assert names == ["base", "pruned"] * 2 + ["pruned", "base"] * 1 + ["base", "pruned"] + [
        "pruned",
        "base",
        "base",
        "pruned",
    ]
    assert all(batch == [0, 1, 2, 0] for _, batch in calls)


def test_every_batch_size_is_timed(clock):
    networks = {name: Takes(name, clock, [1, 1], []) for name in ("base", "pruned")}
    table = time_networks(networks, IMAGES, [1, 2], repeats=1, warmup=0)
    assert table[["network", "batch_size"]].values.tolist() == [
        ["base", 1],
        ["pruned", 1],
        ["base", 2],
        ["pruned", 2],
    ]
    assert table["throughput"].tolist() == [1, 1, 2, 2]
    assert (table["latency_q1_ms"] == 1000).all()
