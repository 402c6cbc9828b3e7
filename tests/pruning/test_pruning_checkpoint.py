"""A saved network is the same network; a damaged one is refused in one line."""

import shutil
import struct

import pytest
import torch
import yaml
from plans import logits, random_plan
from safetensors.torch import load_file, save_file

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.pruning import checkpoint, prune
from psvit.pruning.ranking import Ranking


@pytest.fixture
def single(network):
    """The network in the type that networks are saved in."""
    return network.float()


def test_a_reloaded_network_gives_the_same_bits(single, images, tmp_path):
    x, plan = images[:3].float(), random_plan(single.channel_groups().values(), 0.4)
    for name, network, cut in (("base", single, None), ("pruned", prune(single, plan), plan)):
        folder = tmp_path / name
        checkpoint.save(network, folder, cut, classes=["a", "b"], provenance={"seed": 3})
        expected = logits(network, x)
        # nothing is read but this folder: not the base, nor the place where it was written
        moved = shutil.move(folder, tmp_path / f"{name}-moved")
        again, description = checkpoint.load(moved)
        assert torch.equal(logits(again.eval(), x), expected)
        assert again.spec == network.spec
        assert description["classes"] == ["a", "b"] and description["provenance"] == {"seed": 3}
        assert Plan(description["plan"]) == (cut or Plan())
        assert description["sha256"] == checkpoint.digest(moved / "model.safetensors")
        assert {entry.name for entry in moved.iterdir()} == {"model.safetensors", "model.yaml"}


def test_a_reloaded_network_can_be_pruned_again(single, images, tmp_path):
    once = prune(single, random_plan(single.channel_groups().values(), 0.3))
    plan = random_plan(single.channel_groups().values(), 0.3)
    checkpoint.save(once, tmp_path, plan)
    again, _ = checkpoint.load(tmp_path)
    more = random_plan(once.channel_groups().values(), 0.5, seed=1)
    expected = logits(prune(once, more), images[:2].float())
    assert torch.equal(logits(prune(again, more).eval(), images[:2].float()), expected)


def test_saving_leaves_the_network_as_it_is(single, tmp_path):
    single.train()
    pointers = [tensor.data_ptr() for tensor in single.state_dict().values()]
    checkpoint.save(single, tmp_path)
    assert single.training
    assert [tensor.data_ptr() for tensor in single.state_dict().values()] == pointers


def edit(change):
    """Damage ``model.yaml``."""

    def damage(folder):
        path = folder / "model.yaml"
        description = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(change(description) or description))

    return damage


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def weights(change):
    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def rename(tensors):
    tensors["stem.weight"] = tensors.pop("head.fc.weight")


def narrow(tensors):
    tensors["head.fc.weight"] = tensors["head.fc.weight"][:, 1:].contiguous()


DAMAGES = {
    "no folder": shutil.rmtree,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no description": lambda folder: (folder / "model.yaml").unlink(),
    "weights cut short": truncate,
    "weights of half a header": cut_header,
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights that claim a header of 2^60 bytes": lambda folder: (
        folder / "model.safetensors"
    ).write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "a weight missing": weights(lambda tensors: tensors.pop("head.fc.bias")),
    "a weight too many": weights(lambda tensors: tensors.update(extra=torch.zeros(1))),
    "a weight renamed": weights(rename),
    "a weight of another shape": weights(narrow),
    "description empty": lambda folder: (folder / "model.yaml").write_text(""),
    "description not yaml": lambda folder: (folder / "model.yaml").write_text("model: {"),
    "description not text": lambda folder: (folder / "model.yaml").write_bytes(b"\xff\xfe\x00"),
    "description a list": lambda folder: (folder / "model.yaml").write_text("- 1\n"),
    "no model": edit(lambda d: d.pop("model") and None),
    "model a word": edit(lambda d: d.update(model="meta_spikeformer")),
    "model without a name": edit(lambda d: d["model"].pop("name") and None),
    "model of a strange name": edit(lambda d: d["model"].update(name=["meta_spikeformer"])),
    "an unknown model": edit(lambda d: d["model"].update(name="vgg16")),
    "an unknown value": edit(lambda d: d["model"].update(patch_size=4)),
    "a value that makes no network": edit(lambda d: d["model"].update(num_heads=3)),
    "wider": edit(lambda d: d["model"].update(embed_dims=[8, 16, 32, 48])),
    "fewer classes": edit(lambda d: d["model"].update(num_classes=4)),
    "another family": edit(lambda d: d["model"].update(name="e_spikeformer")),
    "no plan": edit(lambda d: d.pop("plan") and None),
    "plan a list": edit(lambda d: d.update(plan=[1, 2])),
    "plan of a group that does not exist": edit(lambda d: d["plan"].update({"stage9.mlp": [0]})),
    "plan outside the group": edit(lambda d: d["plan"].update({"stage1a.stream": [99]})),
    "plan of words": edit(lambda d: d["plan"].update({"stage1a.stream": ["a"]})),
    "plan without indices": edit(lambda d: d["plan"].update({"stage1a.stream": []})),
    "plan of nothing": edit(lambda d: d["plan"].update({"stage1a.stream": None})),
    "plan forgotten": edit(lambda d: d.update(plan={})),
    "plan of another cut": edit(lambda d: d["plan"].update({"stage1b.block1.mlp.hidden": [0, 1]})),
}


@pytest.fixture(scope="module")
def saved(_alive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    plan = random_plan(_alive.channel_groups().values(), 0.4)
    checkpoint.save(prune(_alive, plan).float(), folder, plan)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(saved, tmp_path, damage):
    folder = shutil.copytree(saved, tmp_path / "copy")
    checkpoint.load(folder)
    DAMAGES[damage](folder)
    with pytest.raises(UserError) as error:
        checkpoint.load(folder, option="pruning.from")
    message = str(error.value)
    assert message.startswith(f"pruning.from={folder}: ") and "\n" not in message


def test_a_pruned_network_pruned_again_is_described_against_the_original(network, tmp_path, images):
    network.float().double()  # loading gives float32
    ranking = Ranking(network, kinds=["hidden", "head"])
    first = ranking.plan({name: ranking.units(name, 0.3) for name in ranking.groups})
    checkpoint.save(prune(network, first), tmp_path / "once", first)
    once, _ = checkpoint.load(tmp_path / "once")
    once.double().eval()
    ranking = Ranking(once, kinds=["hidden", "value", "stream"])
    second = ranking.plan({name: ranking.units(name, 0.3) for name in ranking.groups})
    twice = prune(once, second)
    checkpoint.save(twice, tmp_path / "twice", second)
    again, description = checkpoint.load(tmp_path / "twice")
    with torch.no_grad():
        assert torch.equal(again.double().eval()(images), twice(images))
    whole = prune(network, Plan(description["plan"]))
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), twice.state_dict().values(), strict=True)
    )
