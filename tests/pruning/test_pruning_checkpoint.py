"""A saved network is the same network, whatever type it is stored in."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from plans import logits, random_plan, same_bits
from safetensors.torch import load_file

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.provenance import provenance
from psvit.pruning import checkpoint, prune
from psvit.pruning.ranking import Ranking

PAGE = Path(__file__).parents[2] / "docs/saved_networks.md"


@pytest.fixture
def cut(network):
    """A plan for ``network``."""
    return random_plan(network.channel_groups().values(), 0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reloaded_network_gives_the_same_bits(network, images, cut, tmp_path, dtype):
    network, x = network.to(dtype), images[:3].to(dtype)
    for name, one, plan in (("base", network, None), ("pruned", prune(network, cut), cut)):
        folder = tmp_path / name
        checkpoint.save(one, folder, plan, classes=["a", "b"], provenance={"seed": 3})
        expected = logits(one, x)
        # nothing is read but this folder: not the base, nor the place where it was written
        moved = shutil.move(folder, tmp_path / f"{name}-moved")
        again, description = checkpoint.load(moved)
        assert torch.equal(logits(again.eval(), x), expected) and expected.dtype == dtype
        assert same_bits(again.state_dict(), one.state_dict())
        assert again.spec == network.spec
        assert description["classes"] == ["a", "b"]
        assert Plan(description["plan"]) == (plan or Plan())
        assert description["sha256"]["weights"] == checkpoint.digest(moved / "model.safetensors")
        assert f"torch.{description['dtype']}" == str(dtype)
        assert {entry.name for entry in moved.iterdir()} == {"model.safetensors", "model.yaml"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_matrices_and_nothing_else(network, images, cut, tmp_path, dtype):
    pruned = prune(network, cut).float()
    # a variance that half precision takes for 0
    pruned.stage1a.downsample.bn.running_var.fill_(1e-9)
    checkpoint.save(pruned, tmp_path, cut, dtype=dtype)
    again, description = checkpoint.load(tmp_path)
    assert f"torch.{description['dtype']}" == str(dtype)
    stored = load_file(tmp_path / "model.safetensors")
    rounded = {
        name: tensor.to(dtype).float() if "weight" in name and tensor.dim() > 1 else tensor
        for name, tensor in pruned.state_dict().items()
    }
    assert same_bits(again.state_dict(), rounded)
    assert {name for name, tensor in stored.items() if tensor.dtype == dtype} == {
        name for name, tensor in rounded.items() if tensor.dim() > 1
    }
    # half the unit in the last place, of 10 and 7 bits behind the point
    step = 2.0 ** (-11 if dtype == torch.float16 else -8)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, pruned.state_dict()[name], rtol=step, atol=1e-7)
    pruned.load_state_dict(rounded)
    assert torch.equal(logits(again.eval(), images.float()), logits(pruned, images.float()))


def test_half_precision_of_a_float64_network_comes_back_as_float32(network, cut, tmp_path):
    checkpoint.save(prune(network, cut), tmp_path, cut, dtype=torch.float16)
    again, _ = checkpoint.load(tmp_path)
    kinds = {tensor.dtype for tensor in again.state_dict().values()}
    assert kinds == {torch.float32, torch.int64}


def test_a_network_that_is_half_comes_back_as_float32(network, tmp_path):
    checkpoint.save(network.half(), tmp_path)
    again, description = checkpoint.load(tmp_path)
    assert description["dtype"] == "float16"
    assert same_bits(again.state_dict(), network.float().state_dict())


def test_types_that_cannot_hold_it_are_refused(network, tmp_path):
    with torch.no_grad():
        network.head.fc.weight[0, 0] = 1e5
    for dtype, named in ((torch.float16, "head.fc.weight"), (torch.int8, "bfloat16")):
        with pytest.raises(UserError, match=f"^dtype=.*{named}"):
            checkpoint.save(network, tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()
    # a network that diverged can be looked at
    with torch.no_grad():
        network.head.fc.weight[0, 0] = torch.nan
    checkpoint.save(network, tmp_path, dtype=torch.float16)
    assert checkpoint.load(tmp_path)[0].head.fc.weight[0, 0].isnan()


def test_a_plan_that_is_not_the_network_s_is_not_written(network, cut, tmp_path):
    pruned = prune(network, cut)
    for plan in (None, Plan({**cut, "stage1b.block1.mlp.hidden": [0]})):
        with pytest.raises(UserError, match=r"^plan=.*not what was cut.*is \["):
            checkpoint.save(pruned, tmp_path / "new", plan)
    with pytest.raises(UserError, match="no such channel group"):
        checkpoint.save(pruned, tmp_path / "new", Plan({**cut, "nowhere": [0]}))
    checkpoint.save(pruned, tmp_path / "once", cut)
    once, _ = checkpoint.load(tmp_path / "once")
    for plan in ({"nowhere": [0]}, {"stage1a.stream": [7]}):
        with pytest.raises(UserError, match="^plan"):
            checkpoint.save(once, tmp_path / "new", Plan(plan))
    assert not (tmp_path / "new").exists()


def test_saving_again_changes_nothing(network, tmp_path):
    ranking = Ranking(network, kinds=["hidden", "head", "value"])
    plan = ranking.plan({name: ranking.units(name, 0.3) for name in ranking.groups})
    checkpoint.save(prune(network, plan), tmp_path / "first", plan)
    once, first = checkpoint.load(tmp_path / "first")
    checkpoint.save(once, tmp_path / "second", provenance=first["provenance"])
    _, second = checkpoint.load(tmp_path / "second")
    assert second == first


def test_a_reloaded_network_can_be_pruned_again(network, images, cut, tmp_path):
    once = prune(network, random_plan(network.channel_groups().values(), 0.3))
    plan = random_plan(network.channel_groups().values(), 0.3)
    checkpoint.save(once, tmp_path, plan)
    again, _ = checkpoint.load(tmp_path)
    more = random_plan(once.channel_groups().values(), 0.5, seed=1)
    expected = logits(prune(once, more), images[:2])
    assert torch.equal(logits(prune(again, more).eval(), images[:2]), expected)


def test_saving_leaves_the_network_as_it_is(network, tmp_path):
    network = network.to(memory_format=torch.channels_last).train()
    before = [(tensor.data_ptr(), tensor.stride()) for tensor in network.state_dict().values()]
    checkpoint.save(network, tmp_path, dtype=torch.float16)
    assert network.training
    after = [(tensor.data_ptr(), tensor.stride()) for tensor in network.state_dict().values()]
    assert after == before


def test_where_a_network_comes_from(network, cut, tmp_path):
    checkpoint.save(network, tmp_path / "base")
    checkpoint.save(
        prune(network, cut),
        tmp_path / "pruned",
        cut,
        metrics={"top1": np.float32(0.5), "drop": 1.5, "memory_saving": torch.tensor(0.25)},
        preprocessing=OmegaConf.create({"mean": [0.5, 0.5], "std": "${mean}"}),
        confusion=np.eye(2, dtype=int),
        provenance={"base": checkpoint.weights_digest(tmp_path / "base"), "psvit": "0.0.9"},
    )
    _, description = checkpoint.load(tmp_path / "pruned")
    assert description["metrics"] == {"top1": 0.5, "drop": 1.5, "memory_saving": 0.25}
    assert description["preprocessing"] == {"mean": [0.5, 0.5], "std": [0.5, 0.5]}
    assert description["confusion"] == [[1, 0], [0, 1]]
    found, known = description["provenance"], provenance()
    assert found["base"] == checkpoint.digest(tmp_path / "base" / "model.safetensors")
    assert found["psvit"] == "0.0.9" and found["torch"] == torch.__version__
    assert found.get("commit") == known.get("commit") and found["date"] <= known["date"]


def test_a_fact_that_is_no_text_is_not_written(network, tmp_path):
    with pytest.raises(TypeError, match="metrics.loss: a object"):
        checkpoint.save(network, tmp_path / "new", metrics={"loss": object()})
    assert not (tmp_path / "new").exists()


def test_a_pruned_network_pruned_again_is_described_against_the_original(network, tmp_path, images):
    ranking = Ranking(network, kinds=["hidden", "head"])
    first = ranking.plan({name: ranking.units(name, 0.3) for name in ranking.groups})
    checkpoint.save(prune(network, first), tmp_path / "once", first)
    once, _ = checkpoint.load(tmp_path / "once")
    ranking = Ranking(once.eval(), kinds=["hidden", "value", "stream"])
    second = ranking.plan({name: ranking.units(name, 0.3) for name in ranking.groups})
    twice = prune(once, second)
    checkpoint.save(twice, tmp_path / "twice", second)
    again, description = checkpoint.load(tmp_path / "twice")
    assert torch.equal(logits(again.eval(), images), logits(twice, images))
    whole = prune(network, Plan(description["plan"]))
    assert same_bits(whole.state_dict(), twice.state_dict())


def test_the_command_tells_what_a_folder_holds(network, cut, tmp_path, capsys):
    pruned = prune(network, cut)
    checkpoint.save(pruned, tmp_path / "good", cut, metrics={"top1": 12.5, "note": "\x1b[31m"})
    checkpoint.save(network, tmp_path / "bad")
    (tmp_path / "bad/model.safetensors").write_bytes(b"")
    assert checkpoint.main([str(tmp_path / "good")]) == 0
    told = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in pruned.parameters())
    assert f"{count:,} parameters" in told and "top1: 12.5" in told and "\x1b" not in told
    assert checkpoint.main([str(tmp_path / "good"), str(tmp_path / "bad")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"folder={tmp_path / 'bad'}: model.safetensors does not match")


def test_the_page_is_right(network, images, cut, tmp_path, monkeypatch):
    """docs/saved_networks.md, taken at its word."""
    checkpoint.save(
        prune(network.float(), cut),
        tmp_path / "outputs/runs/my_run/finetuned",
        cut,
        preprocessing={"mean": [0.0]},
        classes=[f"class {index}" for index in range(5)],
        metrics={"top1": 1.0},
    )
    monkeypatch.chdir(tmp_path)
    loading, storing = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"images": images.float()}
    exec(compile(loading, PAGE.name, "exec"), names)
    assert names["logits"].shape == (11, 5)
    exec(compile(storing, PAGE.name, "exec"), names)
    _, small = checkpoint.load("small")
    assert small["dtype"] == "float16" and small["plan"] == {k: list(v) for k, v in cut.items()}
    assert small["provenance"] == names["description"]["provenance"]
    # every key that is written is explained
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    assert set(shown) == set(names["description"]) and set(shown["sha256"]) == set(small["sha256"])
