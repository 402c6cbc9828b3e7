"""Two processes give what one gives: training, evaluation, plan; one of them writes."""

import json
import os
import random
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import seed_everything
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from omegaconf import OmegaConf

from psvit import processes
from psvit.data import create_data
from psvit.errors import UserError
from psvit.measure.accuracy import evaluate
from psvit.models import create_model
from psvit.pipeline import run
from psvit.training.callbacks import KeepRandomState
from psvit.training.fit import fit
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe
from psvit.training.sync import SyncBatchNorms

SMALL = (
    "model.embed_dims=[8,8,8,8]",
    "model.depth=[1,1,1,1,1]",
    "model.num_heads=2",
    "model.mlp_ratio=1",
    "model.time_steps=1",
    "dataset.image_size=16",
    "dataset.train_images=40",
    "dataset.val_images=21",
    "dataset.test_images=21",
    "dataset.batch_size=20",
    # what augmentation draws is another thing in each process
    "dataset.augment.crop_padding=0",
    "trainer.max_epochs=1",
    "training.warmup_epochs=0",
    "finetune.epochs=1",
    "logger=none",
    "report=tables",
    "print_config=false",
    "pruning=uniform",
    "pruning.ratio=0.5",
    "pruning.ratios=[0.5]",
)
# what a convolution gives under autocast
HALF_PRECISION = torch.linspace(-3, 5, 5 * 3 * 4 * 4).view(5, 3, 4, 4).bfloat16()


def trained(cfg, folder):
    """A training in float64, and the network's accuracy: weights, top-1, loss."""
    data = create_data(cfg.dataset, 0)
    torch.manual_seed(0)
    values = {**cfg.model, "num_classes": 10, "in_channels": 3}
    network = create_model(**values)
    # spikes from the first step on, so that every layer learns
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.5)
    seed_everything(0, verbose=False)
    recipe = Recipe(epochs=1, lr=1e-2)
    module = Classifier(network, recipe, data.num_classes, "base")
    fit(module, data, cfg.trainer, folder, [])
    assert all(type(m) is not torch.nn.SyncBatchNorm for m in network.modules())
    classes = {type(m).__name__ for m in network.modules() if hasattr(m, "running_mean")}
    tally = evaluate(network, data.val_dataloader(), torch.device("cpu"))
    return network.state_dict(), tally.top1, tally.images, classes


def drawn(state=None):
    """What is drawn next by chance; from ``state`` where it is given."""
    if state is not None:
        keeper = KeepRandomState()
        keeper.load_state_dict(state)
        keeper.on_fit_start(None, None)
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def normalised(images):
    """This process's share of ``images``, normalised over all processes; the running mean."""
    layer = SyncBatchNorms(on_gpu=False).apply(torch.nn.BatchNorm2d(3))
    return layer(processes.share(images)).detach(), layer.running_mean


def in_two(cfg, folder):
    """What the processes find; the first one in ``folder``, the other in one of its own."""
    number = processes.rank()
    batch = torch.arange(7.0).unsqueeze(1)
    calls = []
    found = {
        "shares": processes.share(batch),
        "whole": [processes.by_shares(lambda x: 2 * x, batch[:n]) for n in (1, 2, 7)],
        "first": processes.from_first(number + 5),
        "made": processes.made_by_all(lambda make: make(folder) or str(folder), calls.append),
        "had": processes.made_by_all(lambda make: str(folder), calls.append),
        "calls": len(calls),
        "all": processes.from_all(number),
        "normalised": normalised(HALF_PRECISION),
        "trained": trained(OmegaConf.merge(cfg, {"trainer": {"precision": "64-true"}}), folder),
    }
    seed_everything(number, verbose=False)
    # of the checkpoint that the first process writes
    state = processes.from_first(KeepRandomState().state_dict())
    found["drawn"] = [drawn(), drawn(state)]
    found["rows"] = run(cfg, folder)["rows"]
    # as the other process's, which has no loggers of its own: the first one decides
    again = OmegaConf.merge(cfg, {"print_config": number == 1})
    found["again"] = run(again, folder)["rows"]
    found["plan"] = (folder / "plan.yaml").read_text()
    found["own"] = str(folder)
    torch.save(found, Path(os.environ["FOUND"]) / f"{number}.pt")


def process(number, cfg, folder, environment):
    """One of the two processes."""
    torch.set_num_threads(1)
    os.environ.update(environment, RANK=str(number), LOCAL_RANK=str(number), NODE_RANK="0")
    try:
        processes.run_over_processes(in_two, cfg, folder / "run", {})
    except BaseException:
        (folder / f"{number}.txt").write_text(traceback.format_exc())
        raise


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """What each of two processes found, and the folder of the run."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "run").mkdir()
    cfg = config("trainer=ddp_cpu", *SMALL, f"paths.cache_dir={folder}/cache")
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "WORLD_SIZE": "2",
        "FOUND": str(folder),
    }
    # Not forked from this process: a backward pass may fail in the child of one that has threads of
    # its own, as other tests leave them. The server imports once for both.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["psvit.pipeline"])
    started = [
        context.Process(target=process, args=(n, cfg, folder, environment)) for n in range(2)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join(300)
    assert [path.read_text()[-500:] for path in sorted(folder.glob("*.txt"))] == []
    assert [each.exitcode for each in started] == [0, 0]
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(2)], folder


def test_shares(two):
    first, second = two[0]
    assert first["shares"].flatten().tolist() == [0, 2, 4, 6]
    assert second["shares"].flatten().tolist() == [1, 3, 5]
    for found in two[0]:
        wholes = [whole.flatten().tolist() for whole in found["whole"]]
        assert wholes == [[0], [0, 2], [0, 2, 4, 6, 8, 10, 12]]
        assert found["first"] == 5 and found["all"] == [0, 1]


def test_each_process_goes_on_from_its_own_random_state(two):
    (first, again), (second, again_second) = (found["drawn"] for found in two[0])
    assert first == again and second == again_second and first != second


def test_batch_norms_under_autocast_are_those_of_one_process(two):
    layer = torch.nn.BatchNorm2d(3)
    expected = layer(HALF_PRECISION)
    for number, found in enumerate(two[0]):
        images, mean = found["normalised"]
        torch.testing.assert_close(images, expected[number::2], rtol=0.01, atol=0.01)
        torch.testing.assert_close(mean, layer.running_mean)


def test_what_is_made_is_made_by_all(two):
    first, second = two[0]
    # once made, once had; both times both know where
    assert first["calls"] == second["calls"] == 1


def test_training_is_that_of_one_process(two, config, tmp_path):
    """Batch norms over both halves, mean gradients, the same order: equal in float64."""
    alone = trained(config(*SMALL, "trainer.precision=64-true"), tmp_path)
    for found in two[0]:
        weights, top1, images, classes = found["trained"]
        assert (top1, images, classes) == alone[1:] == (top1, 21, {"BatchNorm2d"})
        for name, tensor in alone[0].items():
            # a bias before a batch norm has no gradient but rounding, which Adam makes a step of
            assert torch.allclose(weights[name], tensor, rtol=1e-4, atol=1e-4), name


def test_one_plan_and_one_writer(two):
    (first, second), folder = two
    assert first["plan"] == second["plan"] and first["rows"] == second["rows"]
    assert first["again"] == second["again"] == first["rows"]
    assert Path(first["own"]) == folder / "run" and not Path(second["own"]).exists()
    rows = json.loads((folder / "run" / "results.json").read_text())["rows"]
    assert [row["images"] for row in rows] == [21, 21, 21]
    assert (folder / "run" / "finetuned" / "model.safetensors").is_file()
    assert len(list((folder / "cache" / "base").glob("*/manifest.json"))) == 1


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (["dataset.batch_size=21"], "dataset.batch_size=21: expected a multiple of the 2"),
        (["pruning.budget=latency"], "pruning.budget=latency: processes would measure"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: start the processes with torchrun"),
    ],
)
def test_what_processes_cannot_share(config, tmp_path, overrides, option):
    cfg = config("trainer=ddp_cpu", *overrides)
    with pytest.raises(UserError, match=option):
        processes.run_over_processes(None, cfg, tmp_path, {})


def test_one_device_needs_no_processes(config, tmp_path):
    assert processes.run_over_processes(lambda cfg, folder: 7, config(), tmp_path, {}) == 7
    cfg = config("trainer=ddp_cpu", "trainer.devices=1")
    assert processes.run_over_processes(lambda cfg, folder: 7, cfg, tmp_path, {}) == 7
