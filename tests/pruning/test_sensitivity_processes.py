"""Processes that share the images write the rows that one writes."""

import copy

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity import Stopping, measure_sensitivity

CPU = torch.device("cpu")
WANTED = ("stage4.block1.mlp.hidden", "stage4.block1.attn.value")


def analyse(network, batches, path, stopping=None):
    others = [name for name in network.channel_groups() if name not in WANTED]
    ranking = Ranking(network, protect=others)
    return measure_sensitivity(network, batches, [0.3, 0.7], ranking, path, CPU, stopping=stopping)


def process(rank, count, network, batches, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    for name, stopping in (("all", None), ("adaptive", Stopping(60.0, 0.2))):
        table = analyse(network, batches, folder / f"{name}.csv", stopping)
        table.to_csv(folder / f"{name}_{rank}.csv", index=False)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def small(_alive):
    return copy.deepcopy(_alive)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_give_the_rows_of_one(small, images, labels, tmp_path, count):
    # an odd number of batches: a process has nothing to do in the last round
    batches = list(zip(images[:10].split(2), labels[:10].split(2), strict=True))
    mp.start_processes(
        process, (count, small, batches, tmp_path), nprocs=count, start_method="fork"
    )
    for name, stopping in (("all", None), ("adaptive", Stopping(60.0, 0.2))):
        expected = analyse(small, batches, tmp_path / f"{name}_one.csv", stopping)
        # the same bytes: sums are added in the order of one process
        one = (tmp_path / f"{name}_one.csv").read_bytes()
        assert (tmp_path / f"{name}.csv").read_bytes() == one
        for rank in range(count):
            found = pd.read_csv(tmp_path / f"{name}_{rank}.csv")
            pd.testing.assert_frame_equal(found, expected)
