"""A small network that fires, and configs of runs small enough for a test."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from psvit.models import create_model

# networks this small gain nothing from threads, and lose much where the cores are shared
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CLASSES = 5


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """Takes away the log handlers that Hydra leaves behind: they write to a stream that is gone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def _alive():
    torch.manual_seed(0)
    network = create_model(
        "meta_spikeformer",
        embed_dims=[8, 16, 32, 40],
        depth=[1, 1, 1, 1, 1],
        num_heads=4,
        image_size=32,
        strides=[2, 2, 2, 1, 1],
        time_steps=4,
        num_classes=CLASSES,
        in_channels=3,
    ).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.8)
            # attention multiplies spikes: without biases above 0 there are none
            nn.init.uniform_(module.bias, 0.2, 1.4)
            module.momentum = None
    # logits far enough apart that cutting changes the predicted class of some images
    nn.init.normal_(network.head.fc.weight)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network.eval()


@pytest.fixture
def network(_alive):
    """Meta-SpikeFormer in float64 at T = 4, in evaluation mode; each test has its own."""
    return copy.deepcopy(_alive)


@pytest.fixture(scope="session")
def images():
    """11 random images."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(11, 3, 32, 32, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="session")
def labels():
    """A class for each of ``images``."""
    return torch.randint(0, CLASSES, (11,), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def config():
    """Composes conf/ with overrides, as ``run.py`` does."""

    def composed(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("config", ["paths.output_dir=unset", "paths.cache_dir=null", *overrides])

    return composed


# a run of seconds, on scikit-learn's digits, after which the network knows something
TINY_RUN = (
    "model.embed_dims=[8,16,16,16]",
    "model.depth=[1,1,1,1,1]",
    "model.mlp_ratio=2",
    "model.time_steps=2",
    "dataset.train_images=200",
    "dataset.val_images=60",
    "dataset.test_images=80",
    "dataset.batch_size=10",
    "trainer.max_epochs=4",
    "training.warmup_epochs=0",
    "training.lr=2e-2",
    "measure.images=8",
    "measure.batch_sizes=[1,4]",
    "measure.repeats=1",
)


@pytest.fixture(scope="session")
def tiny_run():
    """Overrides that make a run take seconds."""
    return TINY_RUN
