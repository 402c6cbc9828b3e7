"""Runs of the whole program with the recipes that its configs offer."""

import json
from pathlib import Path

import pytest
import torch

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.pipeline import run
from psvit.pruning import checkpoint, prune
from psvit.training.module import Classifier

QUICK = (
    "dataset.train_images=60",
    "dataset.test_images=20",
    "dataset.val_images=20",
    "dataset.image_size=16",
    "model.time_steps=1",
    "trainer.max_epochs=1",
    "pruning=uniform",
    "pruning.ratio=0.5",
    "pruning.ratios=[0.5]",
    "logger=none",
    "report=tables",
)
CIFAR10 = Path(__file__).parents[2] / "experiments/cifar10/e_spikeformer"


@pytest.fixture(scope="module")
def folder(config, tiny_run, tmp_path_factory):
    """Mixed training, and a pruned network that follows its base network."""
    folder = tmp_path_factory.mktemp("distilled")
    recipe = ("training.mixup=0.2", "training.keep=best", "finetune=distill", "finetune.epochs=1")
    run(config(*tiny_run, *QUICK, *recipe, "finetune.distill_rates=1"), folder)
    return folder


def check(folder, base):
    """Rows, and a fine-tuned network of the pruned one's shapes and other weights."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["base", "uniform", "uniform + fine-tuning"]
    assert rows[2]["parameters"] == rows[1]["parameters"] < 0.7 * rows[0]["parameters"]
    pruned, finetuned = (
        checkpoint.load(folder / name)[0].state_dict() for name in ("pruned", "finetuned")
    )
    assert {name: x.shape for name, x in pruned.items()} == {
        name: x.shape for name, x in finetuned.items()
    }
    assert all(x.isfinite().all() for x in finetuned.values())
    assert sum(not torch.equal(x, pruned[name]) for name, x in finetuned.items()) > len(pruned) / 2
    # what was saved before the fine-tuning is still what the base network prunes to
    plan = checkpoint.load(folder / "pruned")[1]["plan"]
    expected = prune(checkpoint.load(base)[0], Plan(plan)).state_dict()
    assert all(torch.equal(x, pruned[name]) for name, x in expected.items())
    assert not (folder / "checkpoints").exists()


def test_distillation(folder):
    check(folder, folder / "base")


def test_the_recipe_of_imagenet(config, tiny_run, folder, tmp_path):
    # two epochs on a few images need not be better than none, and the recipe keeps the best
    recipe = (f"ckpt_path={folder}/base", "finetune=imagenet", "finetune.epochs=2")
    recipe += ("finetune.keep=last",)
    run(config(*tiny_run, *QUICK, *recipe), tmp_path)
    check(tmp_path, folder / "base")


def test_another_teacher(config, tiny_run, folder, tmp_path):
    options = (*tiny_run, *QUICK, f"ckpt_path={folder}/base", "finetune=distill")
    options += ("finetune.epochs=1", "finetune.distill_weight=1")
    found = []
    for teacher in ("null", folder / "finetuned"):
        out = tmp_path / f"run{len(found)}"
        run(config(*options, f"finetune.teacher={teacher}"), out)
        check(out, folder / "base")
        found.append(checkpoint.load(out / "finetuned")[0].state_dict())
    assert any(not torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_a_base_network_follows_a_teacher(config, tiny_run, folder, tmp_path):
    quick = [option for option in QUICK if not option.startswith("pruning")]
    options = (*tiny_run, *quick, "pruning=none", "training.distill_weight=1")
    found = []
    for teacher in ("base", "finetuned", "finetuned"):
        out = tmp_path / f"run{len(found)}"
        run(config(*options, f"training.teacher={folder / teacher}"), out)
        found.append(checkpoint.load(out / "base")[0].state_dict())
    # nothing else differs than who teaches: the labels do not count
    assert any(not torch.equal(x, found[1][name]) for name, x in found[0].items())
    assert all(torch.equal(x, found[2][name]) for name, x in found[1].items())
    with pytest.raises(UserError, match=r"^training.teacher=.*no model.safetensors there"):
        run(config(*options, "training.teacher=nowhere"), tmp_path / "run")


@pytest.mark.parametrize(
    ("teacher", "override", "expected"),
    [
        ("nowhere", "seed=0", "no model.safetensors there"),
        ("base", "dataset.image_size=32", "has image_size=16, this run asks for 32"),
        (CIFAR10, "dataset.image_size=32", "knows a class airplane where dataset=digits has 0"),
    ],
)
def test_a_teacher_that_cannot_teach(
    config, tiny_run, folder, tmp_path, teacher, override, expected
):
    options = (*tiny_run, *QUICK, "finetune=distill", "finetune.epochs=1", override)
    with pytest.raises(UserError, match=expected) as error:
        run(config(*options, f"finetune.teacher={folder / teacher}"), tmp_path / "run")
    assert str(error.value).startswith("finetune.teacher=")
    # before anything is trained
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_teacher_without_spikes(config, tiny_run, folder, tmp_path, monkeypatch):
    """The ResNet of experiments/cifar10: trained, measured and followed as a spiking network is."""
    monkeypatch.syspath_prepend(CIFAR10.parents[2])
    module = "model.module=experiments.cifar10.resnet"
    narrow = [option for option in tiny_run if not option.startswith("model.")]
    teacher = [
        f"hydra.searchpath=[file://{CIFAR10.parent}]",
        "model=cifar10_resnet",
        "model.widths=[8,8,8,8]",
        "pruning=none",
    ]
    quick = [option for option in QUICK if not option.startswith(("model.", "pruning"))]
    run(config(*narrow, *quick, *teacher, "trainer.max_epochs=8"), tmp_path / "teacher")
    (row,) = json.loads((tmp_path / "teacher/results.json").read_text())["rows"]
    # 3x3 convolutions: two on 16x16 pixels, three on 8x8, one on 4x4, two on 2x2; a classifier:
    # none of them reads spikes
    assert row["firing_rate"] is None and not row["silent"] and row["sops"] == 0
    macs = 16**2 * 9 * (3 * 8 + 64) + 8**2 * 9 * 3 * 64 + 4**2 * 9 * 64 + 2**2 * 9 * 2 * 64 + 80
    assert row["macs"] == macs
    assert row["energy_mj"] == pytest.approx(4.6e-9 * macs)

    orders = []
    fit_start = Classifier.on_train_start

    def seen(self):
        fit_start(self)
        weights = (self._teacher[0].body[3].weight, self.network.stage1a[1].mlp.conv1.weight)
        orders.append([w.is_contiguous(memory_format=torch.channels_last) for w in weights])

    monkeypatch.setattr(Classifier, "on_train_start", seen)
    options = [f"ckpt_path={folder}/base", "finetune=distill", "finetune.epochs=1"]
    options += [f"+{module}", f"finetune.teacher={tmp_path}/teacher/base", "channels_last=true"]
    run(config(*tiny_run, *QUICK, *options), tmp_path / "student")
    check(tmp_path / "student", folder / "base")
    assert orders == [[True, True]]
