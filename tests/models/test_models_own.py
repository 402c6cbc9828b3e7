"""docs/own_network.md, taken at its word."""

import copy
import re
import sys
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from spikingjelly.activation_based.base import MemoryModule
from torch import nn

from psvit.models import create_model, factory
from psvit.models.base import SpikingTransformer
from psvit.models.blocks import MLP, Downsample, Head, ResidualBlock
from psvit.neurons import LIF

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/own_network.md").read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside the package with the page's two files, as the current one."""
    (python, code), (yaml, config) = BLOCKS[0], BLOCKS[1]
    assert (python, yaml) == ("python", "yaml")
    (tmp_path / "my_network.py").write_text(code)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/my_network.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_network", None)
    factory._REGISTRY.pop("my_network", None)


def test_the_page_s_check_passes(folder, capsys):
    check = BLOCKS[3][1]
    assert "masked(" in check
    exec(compile(check, "own_network.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "stage1.block1.hidden hidden 16",
        "stage1.block2.hidden hidden 16",
        "stage1.stream stream 32",
    ]


class OwnNeuron(MemoryModule):
    """None of spikingjelly's neurons: fires where what it was shown adds up."""

    def __init__(self):
        super().__init__()
        self.step_mode = "m"
        self.register_memory("v", 0.0)

    def multi_step_forward(self, x_seq):
        spikes = []
        for x in x_seq:
            self.v = 0.7 * self.v + x
            spikes.append((self.v > 1.0).to(x))
        return torch.stack(spikes)


class Stem(nn.Sequential):
    """A first segment with a neuron, which may stand anywhere in it."""

    def __init__(self, neuron_first, neuron):
        parts = [neuron(), TimeConv(2, 8)] if neuron_first else [TimeConv(2, 8), neuron()]
        super().__init__(*parts)


class TimeConv(nn.Conv2d):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Spread(SpikingTransformer):
    """Two streams in one stage, behind a stem that keeps time."""

    def __init__(self, neuron_first=False, neuron=LIF):
        super().__init__(3)
        self.stem = nn.Module()
        self.stem.parts = Stem(neuron_first, neuron)
        self.stem.forward = self.stem.parts.forward
        block = partial(ResidualBlock, 0.0)
        self.open = Downsample(8, 8, kernel_size=3, stride=1)
        self.stage1 = nn.Sequential(
            OrderedDict(
                block1=block(mlp=MLP(8, 16)),
                down=Downsample(8, 16, kernel_size=3, stride=2),
                block2=block(mlp=MLP(16, 32)),
            )
        )
        self.head = Head(16, 4)


@pytest.mark.parametrize("neuron", [LIF, OwnNeuron])
@pytest.mark.parametrize("neuron_first", [False, True])
def test_a_first_segment_with_neurons_runs_for_every_step(neuron_first, neuron):
    torch.manual_seed(0)
    network = Spread(neuron_first, neuron).double().eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.bias, 0.7)
    images = 2 * torch.rand(2, 2, 8, 8, dtype=torch.float64)
    frames = images.unsqueeze(1).expand(-1, 3, -1, -1, -1).contiguous()
    logits = network(images)
    assert torch.equal(logits, network(frames)) and logits.abs().max() > 0


def test_two_streams_of_a_stage_have_names_of_their_own():
    groups = Spread().channel_groups()
    streams = {name: group.size for name, group in groups.items() if group.kind == "stream"}
    assert streams == {"stage1.stream": 8, "stage1.down.stream": 16}


def test_a_copy_has_what_a_network_keeps_of_its_own():
    network = Spread()
    network.seen, network.order = defaultdict(list), OrderedDict()
    copied = copy.deepcopy(network)
    copied.seen["a"].append(1)
    assert copied.seen == {"a": [1]} and not network.seen
    assert type(copied.order) is OrderedDict and copied.order is not network.order


def test_a_config_from_outside_the_package(folder):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["model=my_network", f"hydra.searchpath=[file://{folder}]"])
    values = OmegaConf.to_container(cfg.model, resolve=True)
    network = create_model(**{**values, "num_classes": 4, "in_channels": 2})
    assert type(network).__name__ == "MyNetwork"
    # the spec rebuilds it where nothing has imported it yet
    sys.modules.pop("my_network")
    factory._REGISTRY.pop("my_network")
    assert create_model(**network.spec).head.fc.out_features == 4
