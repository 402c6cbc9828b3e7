"""``python run.py`` as a user runs it: the files it leaves, what they say, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from image_files import images_of
from PIL import Image

from psvit.channels import Plan
from psvit.data import create_data
from psvit.measure.accuracy import evaluate
from psvit.pipeline import run
from psvit.pruning import checkpoint, prune
from psvit.training.module import Classifier

RUN = Path(__file__).parents[1] / "run.py"
CPU = torch.device("cpu")
TARGET = 0.3
JOB = (
    "pruning=fine_grained",
    "pruning.ratios=[0.3,0.6]",
    f"pruning.target_memory_saving={TARGET}",
    "finetune.epochs=1",
    "logger=csv",
    "seed=3",
)
JOB_ROWS = ["base", "uniform", "fine_grained", "fine_grained + fine-tuning"]
# with `ckpt_path` a run needs no training
FROM_BASE = ("finetune=none", "logger=none")


def start(folder, *overrides, **environment):
    """``python run.py`` from another folder than the project's."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(RUN), *overrides],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", **environment},
    )


def finish(process):
    """Its exit code, standard output and standard error."""
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


@pytest.fixture(scope="module")
def started(tmp_path_factory, tiny_run):
    """The main job, and beside it one that is refused."""
    work, processes = tmp_path_factory.mktemp("runs"), {}
    for name, overrides in {"main": JOB, "refused": ["training.lr=0"]}.items():
        processes[name] = start(
            work / name, f"hydra.run.dir={work}/{name}/run", *tiny_run, *overrides
        )
    yield work, processes
    for process in processes.values():
        process.kill()


@pytest.fixture(scope="module")
def folder(started):
    """The run's folder after the main job."""
    work, processes = started
    code, _, error = finish(processes["main"])
    assert code == 0, error
    return work / "main" / "run"


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def data(config, tiny_run):
    cfg = config(*tiny_run, *JOB)
    return create_data(cfg.dataset, cfg.seed)


def load(folder):
    network, description = checkpoint.load(folder)
    return network.eval(), description


def rows_by_name(results):
    return {row["name"]: row for row in results["rows"]}


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
    # nothing beside the run's folder
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


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
    for stage, epochs in (("base", 5), ("finetune", 1)):
        for name in ("loss", "top1", "val_loss", "val_top1", "lr"):
            assert f"{stage}/{name}" in curves
        assert curves[f"{stage}/val_top1"].count() >= epochs


@pytest.fixture(scope="module")
def multirun(folder, tiny_run, tmp_path_factory):
    """Three jobs, the second of which cannot be."""
    work = tmp_path_factory.mktemp("multirun")
    process = start(
        work,
        "-m",
        "pruning=uniform",
        "pruning.ratio=0.1,1.0,0.3",
        "pruning.ratios=[0.3]",
        f"ckpt_path={folder}/base",
        f"hydra.sweep.dir={work}/jobs",
        *tiny_run,
        *FROM_BASE,
    )
    yield work / "jobs", process
    process.kill()


# the multirun goes on beside it
@pytest.fixture(scope="module")
def again(multirun, config, tiny_run, tmp_path_factory):
    """The main job once more, in this process; what its training steps saw."""
    folder = tmp_path_factory.mktemp("again")
    step, seen = Classifier.training_step, []

    def watched(self, batch, index):
        seen.append((self.prefix, self.network.training))
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", watched)
        run(config(*tiny_run, *JOB, f"paths.output_dir={folder}"), folder)
    return folder, seen


@pytest.mark.parametrize(
    "name", ["plan.yaml", "table.csv", "table.md", "sensitivity.csv", "uniform.csv"]
)
def test_the_same_seed_gives_the_same_bytes(folder, again, name):
    assert (again[0] / name).read_bytes() == (folder / name).read_bytes()


def test_the_same_seed_gives_the_same_weights(folder, again):
    for name in ("base", "pruned", "finetuned"):
        first, second = (
            checkpoint.digest(place / name / "model.safetensors") for place in (folder, again[0])
        )
        assert first == second, name


def test_training_is_in_training_mode(again):
    _, seen = again
    assert {prefix for prefix, _ in seen} == {"base", "finetune"}
    # evaluations came before the fine-tuning, and validations between the epochs
    assert all(training for _, training in seen)


def test_pruning_none(config, tiny_run, folder, results, tmp_path):
    cfg = config(*tiny_run, *FROM_BASE, "pruning=none", f"ckpt_path={folder}/base", "seed=3")
    found = run(cfg, tmp_path)
    assert found["rows"] == results["rows"][:1]
    assert not {"plan.yaml", "sensitivity.csv", "uniform.csv", "base", "pruned"} & {
        path.name for path in tmp_path.iterdir()
    }
    assert list(pd.read_csv(tmp_path / "table.csv").network) == ["base"]


def test_pruning_sensitivity(config, tiny_run, folder, tmp_path):
    cfg = config(
        *tiny_run,
        *FROM_BASE,
        "pruning=sensitivity",
        "pruning.ratios=[0.3,0.6]",
        f"ckpt_path={folder}/base",
    )
    assert [row["name"] for row in run(cfg, tmp_path)["rows"]] == ["base"]
    for name in ("sensitivity.csv", "uniform.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "figures" / "sensitivity_curves.png").is_file()
    assert not (tmp_path / "plan.yaml").exists() and not (tmp_path / "pruned").exists()


def test_a_pruned_network_is_pruned_again(config, tiny_run, folder, results, tmp_path):
    cfg = config(
        *tiny_run,
        *FROM_BASE,
        "pruning=uniform",
        "pruning.ratio=0.3",
        "pruning.ratios=[0.3]",
        f"ckpt_path={folder}/pruned",
    )
    rows = rows_by_name(run(cfg, tmp_path))
    before = rows_by_name(results)["fine_grained"]
    assert rows["base"]["top1"] == before["top1"]
    assert rows["base"]["parameters"] == before["parameters"]
    twice, _ = load(tmp_path / "pruned")
    count = sum(p.numel() for p in twice.parameters())
    assert count == rows["uniform"]["parameters"] < before["parameters"]


def test_ratio_0_changes_nothing(config, tiny_run, folder, tmp_path):
    cfg = config(
        *tiny_run,
        *FROM_BASE,
        "pruning=uniform",
        "pruning.ratio=0.0",
        "pruning.ratios=[0.3]",
        f"ckpt_path={folder}/base",
    )
    base, uniform = run(cfg, tmp_path)["rows"]
    assert {**uniform, "name": "", "published": ""} == {**base, "name": "", "published": ""}
    base, pruned = load(folder / "base")[0], load(tmp_path / "pruned")[0]
    for name, tensor in base.state_dict().items():
        assert torch.equal(pruned.state_dict()[name], tensor)


def test_a_multirun_has_a_folder_for_each_job(multirun, results):
    jobs, process = multirun
    code, _, error = finish(process)
    # the job that cannot be is told, and the others go on
    assert code != 0
    (line,) = error.splitlines()
    assert "pruning.ratio=1.0" in line and "job 1" in line
    savings = []
    for job, ratio in ((0, 0.1), (2, 0.3)):
        job = jobs / str(job)
        assert yaml.safe_load((job / "config.yaml").read_text())["pruning"]["ratio"] == ratio
        base, uniform = json.loads((job / "results.json").read_text())["rows"]
        assert base["top1"] == results["rows"][0]["top1"]
        assert (job / "pruned" / "model.safetensors").is_file() and (job / "table.md").is_file()
        savings.append(uniform["memory_saving"])
    assert 0.05 < savings[0] < savings[1] < 0.4
    assert not (jobs / "1" / "results.json").exists()


def test_what_is_wrong_is_one_line_and_an_exit_code(started):
    work, processes = started
    code, out, error = finish(processes["refused"])
    assert code not in (0, None) and "Traceback" not in out
    (line,) = error.splitlines()
    assert line.startswith("training.lr=0: expected")
    # before any training
    assert not (work / "refused" / "run" / "base").exists()


def test_a_folder_of_images_runs(config, tiny_run, folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    options = images_of(train__cat=16, train__dog=16, test__cat=5, test__dog=4)(images)
    cfg = config(
        *tiny_run,
        *options,
        "dataset.val_fraction=0.25",
        "trainer.max_epochs=1",
        "logger=none",
        "pruning=uniform",
        "pruning.ratios=[0.5]",
        "pruning.ratio=0.5",
        "finetune.epochs=1",
    )
    found = run(cfg, tmp_path / "run")
    assert [row["name"] for row in found["rows"]] == ["base", "uniform", "uniform + fine-tuning"]
    assert {row["images"] for row in found["rows"]} == {9}
    assert found["validation"]["images"] == 8
    network, description = load(tmp_path / "run" / "finetuned")
    assert description["classes"] == ["cat", "dog"] and network.head.fc.out_features == 2
