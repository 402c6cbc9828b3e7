"""The authors' own outputs, made with their released code, decide (see tests/fixtures)."""

import argparse
import gzip
import json
import os
import re
from pathlib import Path

import pytest
import torch
from networks import small
from safetensors import safe_open
from safetensors.torch import save_file

from psvit.errors import UserError
from psvit.models import create_model
from psvit.models.official import load_official, official_names, read_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
PUBLISHED = json.loads(gzip.decompress((FIXTURES / "published_sizes.json.gz").read_bytes()))


def values_of(config):
    """The fixture's words for a constructor's values -> ours."""
    words = {
        "embed": "embed_dims",
        "depth": "depth",
        "heads": "num_heads",
        "img": "image_size",
        "nc": "num_classes",
        "T": "time_steps",
    }
    values = {words[key]: value for key, value in config.items() if key in words}
    if "pool" in config:
        values["strides"] = [1 + int(pools) for pools in config["pool"]]
    return values


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.safetensors")), ids=lambda path: path.stem)
def test_logits_are_the_authors(path):
    with safe_open(path, "pt") as file:
        family, config = file.metadata()["family"], json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = create_model(family, **values_of(config))
    load_official(
        network,
        {
            name.removeprefix("state/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("state/")
        },
    )
    with torch.no_grad():
        found = network.double().eval()(tensors["input"].double())
    assert (found - tensors["logits"]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size(name):
    published = PUBLISHED[name]
    ours = {"sdt_v1_cifar_2_512": "sdt_v1_cifar"}.get(name, name)
    with torch.device("meta"):
        network = create_model(ours)
        # the name alone means the published values
        same = create_model(ours, **values_of(published["config"]))
    assert network.spec == same.spec
    assert sum(p.numel() for p in network.parameters()) == published["parameters"]
    names, state = official_names(network), network.state_dict()
    assert set(names) == set(published["state_dict"])
    for theirs, shape in published["state_dict"].items():
        # a pointwise convolution over tokens has no axis for the second row of pixels
        found = list(state[names[theirs]].shape)
        assert found == shape or (len(shape) == 3 and found == [*shape, 1]), theirs


def test_spikformer_for_cifar_has_linear_layers_with_biases():
    with torch.device("meta"):
        network = create_model("spikformer_cifar")
    names, state = official_names(network), network.state_dict()
    # read off the authors' cifar10/model.py
    for part in ("q", "k", "v", "proj"):
        assert list(state[names[f"block.3.attn.{part}_linear.bias"]].shape) == [384]
    assert list(state[names["block.0.mlp.fc1_linear.weight"]].shape[:2]) == [1536, 384]
    assert "patch_embed.proj_conv.weight" in names
    # 9.32 M in Spikformer's table 4, for 4-384
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 9.3


def authors_state(network):
    """A state dict in the authors' names and random values."""
    generator = torch.Generator().manual_seed(5)
    state = network.state_dict()
    return {
        theirs: torch.rand(state[ours].shape, generator=generator).to(state[ours].dtype)
        for theirs, ours in official_names(network).items()
    }


@pytest.fixture
def network():
    return small("spikformer_cifar")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_wrappers_and_prefixes(network, wrapper, prefix):
    state = authors_state(network)
    # the authors' linear layers have no pixels
    given = {
        prefix + name: tensor[..., 0, 0] if "_linear.weight" in name else tensor
        for name, tensor in state.items()
    }
    assert given[f"{prefix}block.0.attn.q_linear.weight"].dim() == 2
    load_official(network, {wrapper: given, "epoch": 3} if wrapper else given)
    for theirs, ours in official_names(network).items():
        assert torch.equal(network.state_dict()[ours], state[theirs])


def refused(network, state, *words):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_official(network, state)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), "a refused checkpoint was half loaded"


def test_a_key_too_few_too_many_or_misshapen_is_named(network):
    state = authors_state(network)
    few = {name: tensor for name, tensor in state.items() if name != "block.1.mlp.fc2_bn.bias"}
    refused(network, few, "block.1.mlp.fc2_bn.bias", "missing")
    refused(network, {**state, "block.9.norm1.bias": torch.zeros(8)}, "block.9.norm1.bias")
    refused(network, {**state, "head.bias": torch.zeros(6)}, "head.bias", "[6]", "[5]")
    # as many numbers, another shape
    name = "block.0.mlp.fc1_linear.weight"
    refused(network, {**state, name: state[name].reshape(32, -1)}, name, "[32, 128]")
    refused(network, {**state, "head.bias": [0.0] * 5}, "head.bias")


def test_another_size_or_family_is_refused(network):
    refused(network, authors_state(small("spikformer_cifar", embed_dims=64)), "[8, 3, 3, 3]")
    refused(network, authors_state(small("spikformer_cifar", depth=1)), "block.1.", "missing")
    refused(network, authors_state(small("spikformer")), "block.0.attn.q_conv.weight")
    refused(network, authors_state(small("qkformer")), "patch_embed1.proj_conv.weight")
    with pytest.raises(UserError, match="no released weights"):
        load_official(torch.nn.Linear(1, 1), {})


def test_reading_weights(tmp_path, network):
    state = authors_state(network)
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"model": state, "epoch": 7, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    torch.save(state, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pth")["args"].lr == 0.1
    for name in ("weights.safetensors", "w.pth", "w.pt"):
        load_official(network, read_checkpoint(tmp_path / name))
        assert torch.equal(network.state_dict()["head.fc.bias"], state["head.bias"])


class Command:
    """What a malicious checkpoint holds: unpickling it runs a shell command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_anything_but_weights_is_refused_and_not_executed(tmp_path, network, zipped):
    trace, file = tmp_path / "executed", tmp_path / "weights.pth"
    torch.save(
        {"model": authors_state(network), "extra": Command(trace)},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=f"{re.escape(str(file))}.*refused.*system"):
        read_checkpoint(file)
    assert not trace.exists()
    # the file would have run it
    torch.load(file, weights_only=False)
    assert trace.exists()


def test_files_that_are_no_checkpoint(tmp_path, network):
    torch.save(network, tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in (
        "module.pth",
        "list.pth",
        "text.pth",
        "text.safetensors",
        "empty.pt",
        "absent.pth",
        "absent.safetensors",
    ):
        with pytest.raises(UserError, match=name) as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
