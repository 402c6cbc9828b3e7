"""The benchmarks' naive way is the same computation, and their memory figure is right."""

import os

import pytest
import torch

from benchmarks import naive, networks, timing
from benchmarks.size import _pruned
from benchmarks.timing import Options, compare, peak_bytes, result
from psvit.measure.footprint import memory_saving, parameters
from psvit.neurons import LIF, IntegerLIF
from psvit.pruning.allocation import uniform
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import pruned_parameters

CPU = torch.device("cpu")


def test_a_stock_network_gives_the_same_logits():
    for name, steps in (("meta_spikeformer", 2), ("e_spikeformer", 1)):
        values = {**networks.SMALL, "embed_dims": [8, 8, 16, 16], "time_steps": steps}
        if name == "e_spikeformer":
            del values["attention_scale"]
        network = networks.network(name, CPU, **values).double()
        stock = naive.stock(network)
        assert not any(isinstance(module, (LIF, IntegerLIF)) for module in stock.modules())
        x = networks.images(network, 2, CPU)
        with torch.no_grad():
            assert (stock(x) - network(x)).abs().max() < 1e-12


def test_the_pruned_network_is_the_first_that_saves_enough():
    base = networks.small(CPU, embed_dims=[8, 8, 16, 16], time_steps=1)
    ranking = Ranking(base)
    # one percent after the other
    left = (pruned_parameters(base, uniform(ranking, p / 100)) for p in range(1, 100))
    first = next(count for count in left if memory_saving(count, parameters(base)) >= 0.3)
    assert parameters(_pruned(base, 0.3, 1)) == first


def test_the_peak_counts_what_is_held_at_once():
    def run():
        first = torch.empty(1000)
        del first
        second, third = torch.empty(500), torch.empty(1500)
        return second, third

    assert peak_bytes(run, CPU) == 4 * 2000


def test_a_result_is_the_median_and_knows_its_target():
    row = result("x", [1.0, 3.0, 2.0], 1.5)
    assert (row.ratio, row.spread, row.met) == (2.0, 2.0, True)
    assert result("x", [2.0], 1.5, at_most=True).met is False
    assert result("x", [2.0], None).met is None


def test_each_side_runs_in_a_process_of_its_own_and_ours_keeps_memory(tmp_path, monkeypatch):
    def side(name):
        return lambda: (tmp_path / name).open("a").write(f"{os.getpid()} ")

    told = side("keeps")
    monkeypatch.setattr(timing, "keep_freed_memory", told)
    options = Options(CPU, repeats=2, quick=True)
    compare("x", side("theirs"), side("ours"), None, options)
    theirs, ours, keeps = (
        (tmp_path / name).read_text().split() for name in ("theirs", "ours", "keeps")
    )
    # the first of three warms up
    assert len(theirs) == len(ours) == 3
    assert len({*theirs, *ours, str(os.getpid())}) == 3
    assert keeps == ours[:1]


def test_a_side_that_fails_ends_the_comparison():
    with pytest.raises(EOFError):
        compare("x", lambda: 1 / 0, lambda: None, None, Options(CPU, repeats=1, quick=True))
