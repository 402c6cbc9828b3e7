"""Every shipped conf/model file, the registry, timm, and the list of networks."""

import copy
import functools
import inspect
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from networks import FAMILIES, images, logits, small
from omegaconf import OmegaConf
from torch import nn

from psvit.errors import UserError
from psvit.measure.operations import count_macs
from psvit.models import __main__ as listing
from psvit.models import create_model, factory, model_names

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# before any test registers a network of its own; files of tests have done so while being collected
SHIPPED = [
    name
    for name in model_names()
    if factory._REGISTRY[name][0].__module__.startswith("psvit.models.")
]
SMALL_ONES = ["meta_spikeformer", "e_spikeformer", "sdt_v1", "spikformer", "qkformer"]


@functools.cache
def composed(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"model={name}", "dataset=cifar10"])
    return OmegaConf.to_container(cfg.model, resolve=True)


def values_of(name):
    return copy.deepcopy(composed(name))


@pytest.mark.parametrize("name", FILES)
def test_a_file_builds_its_network(name):
    values = values_of(name)
    assert values["name"] == name
    # the dataset knows these
    assert (values["num_classes"], values["in_channels"], values["image_size"]) == (None, None, 32)
    values.update(num_classes=7, in_channels=2)
    with torch.device("meta"), torch.no_grad():
        network = create_model(**values).eval()
        # shapes are those of any number of steps, and each takes its time
        network.time_steps = 1
        assert network(torch.empty(2, 2, 32, 32)).shape == (2, 7)
    # a file shows every value that can be changed
    constructor = factory._REGISTRY[name][0]
    assert set(values) - {"name"} == set(inspect.signature(constructor).parameters)


@pytest.mark.parametrize("name", [name for name in FILES if name not in SMALL_ONES])
def test_a_published_file_says_what_its_name_means(name):
    values = values_of(name)
    with torch.device("meta"):
        published = create_model(name).spec
        values.update({key: published[key] for key in ("image_size", "num_classes", "in_channels")})
        assert create_model(**values).spec == published


def test_every_network_has_a_file():
    assert SHIPPED == FILES


def test_small_files_are_small():
    for name in SMALL_ONES:
        network = create_model(**{**values_of(name), "num_classes": 10, "in_channels": 3})
        assert sum(p.numel() for p in network.parameters()) < 2e6
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_makes_them_too(name):
    with torch.device("meta"):
        network = timm.create_model(
            f"psvit_{name}", num_classes=7, in_chans=2, drop_path_rate=0.3, img_size=64
        )
    assert type(network) is type(small(name))
    assert network.head.fc.out_features == 7
    assert next(m for m in network.modules() if isinstance(m, nn.Conv2d)).in_channels == 2
    assert max(m.drop_path.rate for m in network.modules() if hasattr(m, "drop_path")) == 0.3
    assert network.spec["image_size"] == 64


def test_timm_lists_them_and_promises_no_weights():
    assert {f"psvit_{name}" for name in model_names()} <= set(timm.list_models("psvit_*"))
    with pytest.raises(UserError, match="pretrained=True"):
        timm.create_model("psvit_qkformer_10_384", pretrained=True)
    with pytest.raises(UserError, match="drop_rate=0.1"):
        timm.create_model("psvit_qkformer_10_384", drop_rate=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_are_those_of_the_layers_and_of_attention(name):
    network = small(name).double().eval()
    macs = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            macs.append(output.numel() * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            macs.append(output.numel() * module.in_features)
        elif hasattr(module, "scale"):
            # two products over N tokens, each C x C_v / heads a token
            steps, batch, channels, *pixels = output.shape
            tokens, wide = pixels[0] * pixels[1], module.projection.residual_ports().reads[0]
            value = module.projection.get_submodule(wide).in_channels
            macs.append(2 * steps * batch * tokens * channels * value // module.num_heads)

    handles = [module.register_forward_hook(count) for module in network.modules()]
    logits(network, images(batch=1))
    for handle in handles:
        handle.remove()
    assert count_macs(network.float()) == sum(macs)


def test_the_list_shows_parameters_and_macs(monkeypatch, capsys):
    names = ["e_spikeformer_2_7m", "sdt_v1_cifar", "meta_spikeformer"]
    monkeypatch.setattr(listing, "model_names", lambda: names)
    assert listing.main([]) == 0
    told, lines = capsys.readouterr().out.split("\n\n")[:2]
    assert "model=NAME" in told and "dataset=digits" in told
    header, first, second, small = lines.splitlines()
    assert header.split()[0] == "name"
    assert first.split()[:2] == ["e_spikeformer_2_7m", "2.70"]
    assert second.split()[:2] == ["sdt_v1_cifar", "10.23"]
    assert second.split()[-3:] == ["4", "32", "10"]
    # as a run with the default dataset has it
    network = create_model(**{**values_of(names[2]), "num_classes": 10, "in_channels": 3})
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert small.split() == [names[2], "*", f"{millions:.3f}", "0.029", "4", "32", "10"]


def test_the_listing_takes_nothing_else(capsys):
    with pytest.raises(SystemExit) as ended:
        listing.main(["qkformer"])
    assert ended.value.code == 2 and "qkformer" in capsys.readouterr().err
