"""``debug=``, ``train=``, ``test=``, and what a run leaves of its config and its machine."""

import json

import pandas as pd
import pytest
import torch
import yaml
from main_job import load

from psvit.console import config_tree
from psvit.data import create_data
from psvit.errors import UserError
from psvit.pipeline import run
from psvit.setup import set_deterministic


@pytest.fixture(scope="module")
def fast(config, tiny_run, tmp_path_factory):
    """``debug=fdr`` on a tiny network, with the deterministic kernels."""
    folder = tmp_path_factory.mktemp("fdr")
    quick = ("report=tables",)
    cfg = config("debug=fdr", *tiny_run, *quick, "trainer.deterministic=true")
    try:
        run(cfg, folder)
    finally:
        set_deterministic(False)
    return folder


def test_fdr_passes_through_all_stages(fast):
    rows = json.loads((fast / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows][-2:] == ["fine_grained", "fine_grained + fine-tuning"]
    assert (fast / "table.md").is_file() and not (fast / "checkpoints").exists()


def test_the_environment_is_on_file(fast):
    found = json.loads((fast / "environment.json").read_text())
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["cores"] >= 1 and found["memory_gb"] > 0.1 and found["cpu"]
    assert "commit" in found or "modified" not in found


def test_without_training_and_on_the_validation_split(config, tiny_run, fast, tmp_path):
    cfg = config(
        *tiny_run,
        "train=false",
        "test=false",
        f"ckpt_path={fast}/base",
        "pruning=uniform",
        "pruning.ratios=[0.5]",
        "pruning.ratio=0.5",
        "logger=none",
        "report=tables",
    )
    found = run(cfg, tmp_path)
    assert [row["stage"] for row in found["rows"]] == ["base", "pruned"]
    # 60 validation images, 80 test images
    assert {row["images"] for row in found["rows"]} == {60}
    # the curve of step 1 is of the same images
    curve = pd.read_csv(tmp_path / "uniform.csv")
    assert curve.top1.tolist() == [row["top1"] for row in found["rows"]]
    assert load(tmp_path / "pruned")[1]["metrics"]["split"] == "validation"
    assert "on the validation set" in (tmp_path / "table.md").read_text()


def test_no_training_needs_a_network(config, tmp_path):
    with pytest.raises(UserError, match="train=False: expected a ckpt_path"):
        run(config("train=false"), tmp_path)


def test_overfitting_sees_the_same_images_each_time(config):
    cfg = config("debug=overfit")
    data = create_data(cfg.dataset, cfg.seed)
    first, again = (data.train.__getitems__([0, 1]) for _ in range(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert cfg.trainer.overfit_batches == 1 and cfg.training.label_smoothing == 0


def test_the_profile_is_on_file(config, tiny_run, tmp_path):
    cfg = config("debug=profiler", *tiny_run, "dataset.train_images=20", "trainer.max_epochs=1")
    cfg.paths.output_dir = str(tmp_path)
    run(cfg, tmp_path)
    assert "optimizer_step" in (tmp_path / "fit-profile.txt").read_text()


def test_the_tree_holds_every_value(config):
    cfg = config("seed=7")
    cfg.paths.output_dir = "somewhere"
    sections = {branch.label: branch.children[0].label.code for branch in config_tree(cfg).children}
    assert yaml.safe_load(sections["run"])["seed"] == 7
    assert yaml.safe_load(sections["pruning"])["ratios"] == list(cfg.pruning.ratios)
    assert list(sections)[:2] == ["model", "dataset"]
