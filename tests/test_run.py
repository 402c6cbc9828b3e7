"""``python run.py`` with one option or another: the same seed, each policy, a multirun."""

import json
import re

import pandas as pd
import pytest
import torch
import yaml
from image_files import images_of
from main_job import JOB, finish, load, main_job, rows_by_name, start

from psvit.data import create_data
from psvit.models import create_model
from psvit.networks import build_network, load_network
from psvit.pipeline import run
from psvit.pruning import checkpoint
from psvit.training.module import Classifier

# with `ckpt_path` a run needs no training
FROM_BASE = ("finetune=none", "logger=none", "report=tables")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_run):
    return main_job(tmp_path_factory, tiny_run)


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


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
        run(config(*tiny_run, *JOB, "report=tables", f"paths.output_dir={folder}"), folder)
    return folder, seen


@pytest.mark.parametrize("name", ["plan.yaml", "sensitivity.csv", "uniform.csv"])
def test_the_same_seed_gives_the_same_bytes(folder, again, name):
    assert (again[0] / name).read_bytes() == (folder / name).read_bytes()


def test_the_same_seed_gives_the_same_table(folder, again):
    first, second = (pd.read_csv(place / "table.csv") for place in (folder, again[0]))
    # times are never twice the same
    measured = [name for name in first if not re.search("latency|speedup|throughput", name)]
    assert 10 < len(measured) < len(first.columns)
    pd.testing.assert_frame_equal(first[measured], second[measured], check_exact=True)


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


def test_a_network_runs_for_another_number_of_time_steps(config, tiny_run, folder):
    cfg = config(*tiny_run, f"ckpt_path={folder}/base", "ckpt_time_steps=3")
    loaded = load_network(cfg)
    network, trained = build_network(cfg, create_data(cfg.dataset, cfg.seed), loaded)
    assert trained and network.spec["time_steps"] == cfg.model.time_steps == 3
    original, description = load(folder / "base")
    expected = create_model(**{**description["model"], "time_steps": 3})
    expected.load_state_dict(original.state_dict())
    size = cfg.dataset.image_size
    images = torch.randn(2, len(cfg.dataset.mean), size, size)
    found, wanted = (net.eval()(images) for net in (network, expected))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, original(images))


def test_the_weights_of_a_folder_stand_for_it(config, tiny_run, folder):
    cfg = config(*tiny_run, f"ckpt_path={folder}/base/model.safetensors")
    network, _ = load_network(cfg)
    assert cfg.ckpt_path == f"{folder}/base"
    weights = load(folder / "base")[0].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_images_prepared_otherwise_are_told(config, tiny_run, folder, caplog):
    cfg = config(*tiny_run, f"ckpt_path={folder}/base", "dataset.std=[0.5,0.5,0.5]")
    build_network(cfg, create_data(cfg.dataset, cfg.seed), load_network(cfg))
    assert "dataset.std=[0.5, 0.5, 0.5]" in caplog.text and "mean" not in caplog.text


def test_pruning_sensitivity(config, tiny_run, folder, tmp_path):
    cfg = config(
        *tiny_run,
        *FROM_BASE,
        "pruning=sensitivity",
        "pruning.ratios=[0.3,0.6]",
        f"ckpt_path={folder}/base",
        "report=full",
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


@pytest.mark.parametrize("kinds", [None, ["query_key"]])
def test_ours_stands_beside_one_ratio_for_the_kinds_that_others_cut(
    config, tiny_run, folder, results, tmp_path, kinds
):
    cfg = config(
        *tiny_run,
        *FROM_BASE,
        *JOB[1:3],
        "pruning=budgeted",
        "pruning.recovery=none",
        "pruning.max_steps=1",
        "pruning.calibration_images=50",
        "dataset.val_images=20",
        f"ckpt_path={folder}/base",
    )
    if kinds is not None:
        cfg.pruning.uniform_kinds = kinds
    rows = rows_by_name(run(cfg, tmp_path))
    if kinds is None:
        rival = rows_by_name(results)["uniform"]
        assert rows["uniform"]["parameters"] == rival["parameters"]
        assert rows["uniform"]["top1"] == rival["top1"]
    else:
        # query and key alone do not hold 30 % of the network
        assert list(rows) == ["base", "budgeted"]
    assert rows["budgeted"]["memory_saving"] >= 0.3


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
    told_apart = ("name", "policy", "stage", "published")
    assert {key: value for key, value in uniform.items() if key not in told_apart} == {
        key: value for key, value in base.items() if key not in told_apart
    }
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
    # the table has it, with the reason
    table = pd.read_csv(jobs / "comparison.csv", keep_default_na=False)
    (failed,) = table["job"][table["status"] == "failed"]
    assert failed.startswith("pruning.ratio=1.0 (pruning.ratio=1.0: expected a ratio")


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
        "report=tables",
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


def test_runs_share_what_the_cache_holds(config, tiny_run, tmp_path):
    def rows(name, cache, ratio):
        cfg = config(
            *tiny_run,
            "pruning=uniform",
            f"pruning.ratio={ratio}",
            "pruning.ratios=[0.3]",
            "dataset.train_images=60",
            "trainer.max_epochs=1",
            "finetune.epochs=1",
            "logger=none",
            "report=tables",
            "seed=5",
            f"paths.cache_dir={cache}",
        )
        return run(cfg, tmp_path / name)["rows"]

    cache = tmp_path / "cache"
    first = rows("first", cache, 0.3)
    again = rows("again", cache, 0.5)
    # one training and one curve, for two prunings
    for stage in ("base", "uniform"):
        (entry,) = (path for path in (cache / stage).iterdir() if not path.name.startswith("."))
        assert len((entry / "uses.txt").read_text().splitlines()) == 1
    assert again[0] == first[0] and again[1] != first[1]
    # and what comes from the cache changes no figure, fine-tuning included
    assert rows("alone", "null", 0.5) == again
