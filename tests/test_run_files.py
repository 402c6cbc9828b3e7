"""The files that ``python run.py`` leaves, and what they say."""

import json

import pandas as pd
import pytest
import torch
import yaml
from main_job import JOB, JOB_ROWS, TARGET, load, main_job, rows_by_name
from PIL import Image

from psvit import pipeline
from psvit.channels import Plan
from psvit.data import create_data
from psvit.measure.accuracy import evaluate
from psvit.pruning import prune
from psvit.resume import read_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_run):
    return main_job(tmp_path_factory, tiny_run)


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def data(config, tiny_run):
    cfg = config(*tiny_run, *JOB)
    return create_data(cfg.dataset, cfg.seed)


def test_everything_promised_is_there(folder):
    for name in (
        "config.yaml",
        "sensitivity.csv",
        "uniform.csv",
        "plan.yaml",
        "results.json",
        "table.md",
        "table.csv",
        "run.log",
        *(
            f"{network}/model.{end}"
            for network in ("base", "pruned", "finetuned")
            for end in ("safetensors", "yaml")
        ),
    ):
        assert (folder / name).stat().st_size > 0, name
    for name in ("sensitivity_curves", "sensitivity_map", "accuracy_memory", "plan"):
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert min(image.size) > 200, name
    # nothing half-written, and nothing that only a resumed analysis needs
    assert not [path.name for path in folder.rglob("*.partial.json")]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".results")]
    # nothing beside the run's folder and the cache
    beside = {path.relative_to(folder.parent).parts[:2] for path in folder.parent.rglob("*")}
    assert {parts[:2] for parts in beside if parts[0] != "run"} == {
        ("outputs",),
        ("outputs", "cache"),
    }


def test_the_config_is_resolved(folder):
    text = (folder / "config.yaml").read_text()
    cfg = yaml.safe_load(text)
    assert "${" not in text
    assert cfg["pruning"]["target_memory_saving"] == TARGET and cfg["seed"] == 3
    assert cfg["model"]["embed_dims"] == [8, 16, 16, 16] and cfg["model"]["image_size"] == 32
    assert cfg["paths"]["output_dir"] == str(folder)


def test_the_rows_of_the_results(results):
    rows = rows_by_name(results)
    assert list(rows) == JOB_ROWS
    base = rows["base"]
    assert base["memory_saving"] == 0.0 and base["top1"] > 13
    for row in rows.values():
        assert row["memory_saving"] == 1 - row["parameters"] / base["parameters"]
        assert row["images"] == 80
        assert row["top1"] * 80 / 100 == pytest.approx(round(row["top1"] * 80 / 100))
    for name in ("uniform", "fine_grained"):
        assert TARGET <= rows[name]["memory_saving"] < TARGET + 0.05
        assert rows[name]["memory_mb"] < (1 - TARGET + 0.02) * base["memory_mb"]
    assert rows[JOB_ROWS[3]]["parameters"] == rows["fine_grained"]["parameters"]
    # published figures stand at the networks that they are of, and are those of the abstract
    assert rows["uniform"]["published"] is None
    assert rows["base"]["published"]["top1"] == 73.3
    # the paper has no row for this run's target
    assert rows["fine_grained"]["published"] is None


def test_the_table_says_what_the_results_say(folder, results):
    table, rows = pd.read_csv(folder / "table.csv"), results["rows"]
    assert list(table.network) == JOB_ROWS
    for line, row in zip(table.itertuples(), rows, strict=True):
        assert line.top1 == pytest.approx(row["top1"]) and line.parameters == row["parameters"]
        assert line.drop == pytest.approx(rows[0]["top1"] - row["top1"])
        assert line.memory_saving_percent == pytest.approx(100 * row["memory_saving"])
    markdown = (folder / "table.md").read_text()
    for row in rows:
        assert f"| {row['name']} | {row['top1']:.2f} |" in markdown
        assert f"{row['parameters']:,}" in markdown


def test_the_uniform_curve(folder, results):
    curve = pd.read_csv(folder / "uniform.csv")
    assert list(curve.ratio) == [0.0, 0.3, 0.6] and set(curve.images) == {60}
    assert curve.parameters.is_monotonic_decreasing
    assert curve.parameters[0] == results["rows"][0]["parameters"]
    validation = {name: curve[name][0] for name in ("top1", "loss", "images")}
    assert results["validation"] == pytest.approx(validation)


def test_the_sensitivity_table(folder, data):
    table = pd.read_csv(folder / "sensitivity.csv")
    base, _ = load(folder / "base")
    groups = {
        name: group
        for name, group in base.channel_groups().items()
        if group.kind in ("hidden", "query_key", "value")
    }
    assert set(zip(table.group, table.ratio, strict=True)) == {
        (name, ratio) for name in groups for ratio in (0.3, 0.6)
    }
    # validation images, not test images
    assert set(table.images) == {60}
    # the loss of a group that the plan keeps in part is measured by hand
    row = table[table.group == "stage4.block1.mlp.hidden"].iloc[-1]
    norms = base.stage4.block1.mlp.conv1.weight.detach().flatten(1).double().norm(dim=1)
    kept = norms.argsort(descending=True, stable=True)[: row["size"] - row.removed].tolist()
    tally = evaluate(prune(base, Plan({row.group: kept})), data.val_dataloader(), CPU)
    assert row.loss == pytest.approx(tally.loss, abs=1e-5)
    assert row.top1 == pytest.approx(tally.top1, abs=1e-3)


def test_the_networks_are_those_of_the_table(folder, results, data):
    rows = rows_by_name(results)
    for name, row in (("base", "base"), ("pruned", "fine_grained"), ("finetuned", JOB_ROWS[3])):
        network, description = load(folder / name)
        tally = evaluate(network, data.test_dataloader(), CPU)
        assert tally.correct == round(rows[row]["top1"] * 80 / 100), name
        assert tally.loss == pytest.approx(rows[row]["loss"], abs=1e-6), name
        assert sum(p.numel() for p in network.parameters()) == rows[row]["parameters"], name
        assert description["preprocessing"] == data.preprocessing
        assert description["classes"] == [str(digit) for digit in range(10)]
        assert description["provenance"]["seed"] == 3


def test_the_pruned_network_is_the_plan_applied_to_the_base(folder):
    plan = Plan.load(folder / "plan.yaml")
    base, _ = load(folder / "base")
    pruned, description = load(folder / "pruned")
    assert dict(Plan(description["plan"])) == dict(plan)
    expected = prune(base, plan).state_dict()
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # fine-tuning moved the weights and left the shapes
    finetuned, _ = load(folder / "finetuned")
    moved = 0
    for name, tensor in finetuned.state_dict().items():
        assert tensor.shape == expected[name].shape
        moved += not torch.equal(tensor, expected[name])
    assert moved > len(expected) / 2


def test_training_curves(folder):
    (path,) = folder.glob("csv/version_*/metrics.csv")
    curves = pd.read_csv(path)
    for stage, epochs in (("base", 4), ("finetune", 1)):
        for name in ("loss", "top1", "val_loss", "val_top1", "lr"):
            assert f"{stage}/{name}" in curves
        assert curves[f"{stage}/val_top1"].count() >= epochs


def test_a_report_that_cannot_be_drawn_ends_no_run(config, tiny_run, tmp_path, monkeypatch, caplog):
    def broken(_folder):
        raise ValueError("no such\nglyph")

    monkeypatch.setattr(pipeline, "write_tables", broken)
    options = (
        "pruning=none",
        "finetune=none",
        "trainer.max_epochs=1",
        "logger=none",
        "report=tables",
    )
    pipeline.run(config(*tiny_run, *options), tmp_path / "run")
    assert "the report is not whole (ValueError: no such glyph)" in caplog.text
    assert f"python -m psvit.report {tmp_path / 'run'}" in caplog.text
    assert read_state(tmp_path / "run")["finished"]
