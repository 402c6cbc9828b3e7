import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import report_runs
from omegaconf import OmegaConf
from wandb_records import artifacts, finished, logged

from psvit.errors import UserError
from psvit.report.dashboard import log_run, summary
from psvit.report.loggers import close_loggers, open_loggers, wandb_run
from psvit.report.table import final_table

CONF = Path(__file__).parents[2] / "conf" / "logger"


def loggers_config(output_dir, *names, **options):
    """The ``logger`` group as the main config holds it."""
    config = OmegaConf.create({"paths": {"output_dir": str(output_dir)}, "tags": ["test"]})
    config.logger = OmegaConf.merge(*(OmegaConf.load(CONF / f"{name}.yaml") for name in names))
    for key, value in options.items():
        config.logger.wandb[key] = value
    return config.logger


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """W&B keeps its own files out of the home folder, and Lightning's WANDB_MODE is undone."""
    home = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(home))
        patch.setenv("WANDB_MODE", "offline")
        yield


@pytest.fixture(scope="module")
def offline(environment, folder, tmp_path_factory):
    """The records, and the folder, of one offline run after the whole report was logged."""
    output = tmp_path_factory.mktemp("output")
    loggers = open_loggers(loggers_config(output, "wandb"))
    loggers[0].log_metrics({"base/val_top1": 91.5, "epoch": 1}, step=3)
    log_run(wandb_run(loggers), folder)
    close_loggers(loggers)
    (file,) = output.glob("wandb/offline-run-*/run-*.wandb")
    return finished(file), file.parent


def table(offline, key):
    found, folder = offline
    entry = logged(found, "history")[key]
    assert entry["_type"] == "table-file"
    content = json.loads((folder / "files" / entry["path"]).read_text())
    return pd.DataFrame(content["data"], columns=content["columns"])


def test_the_run_holds_the_config_its_tags_and_the_training_curves(offline):
    found, _ = offline
    assert logged(found, "config")["pruning"] == {"target_memory_saving": 0.224}
    begun = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert begun.project == "psvit" and list(begun.tags) == ["test"]
    assert logged(found, "history")["base/val_top1"] == 91.5
    assert found[-1].WhichOneof("record_type") == "exit"


def test_tables_hold_every_row_of_the_files(offline, run):
    pd.testing.assert_frame_equal(table(offline, "sensitivity/table"), run.sensitivity)
    shown = table(offline, "uniform/table")
    pd.testing.assert_frame_equal(shown[run.uniform.columns], run.uniform, check_dtype=False)
    shown = table(offline, "final/table")
    pd.testing.assert_frame_equal(
        shown.astype(final_table(run).dtypes), final_table(run), check_exact=True
    )
    assert len(table(offline, "plan/table")) == 29


def test_native_charts_know_their_columns(offline):
    charts = logged(offline[0], "config")["_wandb"]["visualize"]
    fields = {
        name: json.loads(chart)["panel_config"]["fieldSettings"]
        if isinstance(chart, str)
        else chart["panel_config"]["fieldSettings"]
        for name, chart in charts.items()
    }
    assert fields["uniform/top1_against_memory"]["x"] == "memory_saving_percent"
    assert fields["sensitivity/drop_against_ratio"]["stroke"] == "group"
    assert fields["final/top1_against_memory"]["y"] == "top1"
    history = logged(offline[0], "history")
    for name in fields:
        assert history[f"{name}_table"]["_type"] == "table-file"


def test_figures_are_the_files_own(offline, folder):
    found, run_folder = offline
    history = logged(found, "history")
    for picture in (folder / "figures").glob("*.png"):
        entry = history[f"figures/{picture.stem}"]
        assert entry["_type"] == "image-file"
        assert (run_folder / "files" / entry["path"]).read_bytes() == picture.read_bytes()


def test_summary_can_be_sorted_by(offline):
    values = logged(offline[0], "summary")
    assert values["unpruned/top1"] == 97.5
    assert values["uniform/drop"] == 9.0
    assert values["pruned/top1"] == 95.25 and values["pruned/drop"] == 2.25
    assert values["final/top1"] == 97.0 and values["final/drop"] == 0.5
    assert values["final/memory_saving"] == 0.226
    assert values["final/parameters"] == 11_696_849


def test_networks_are_artifacts_with_their_metrics(offline, folder):
    found = artifacts(offline[0], "model")
    assert sorted(found) == ["digits-finetuned", "digits-pruned", "meta_spikeformer-digits-base"]
    top1 = {"base": 97.5, "pruned": 95.25, "finetuned": 97.0}
    for artifact in found.values():
        stage = artifact.name.rpartition("-")[2]
        metadata = json.loads(artifact.metadata)
        assert metadata["top1"] == top1[stage] and "published" not in metadata
        files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        assert files == {
            file: str(folder / stage / file) for file in ("model.safetensors", "model.yaml")
        }


def test_a_network_hangs_on_the_one_that_it_was_made_from(offline):
    found = artifacts(offline[0], "model")
    parents = {name: json.loads(each.metadata)["made_from"] for name, each in found.items()}
    assert parents == {
        "meta_spikeformer-digits-base": None,
        "digits-pruned": "meta_spikeformer-digits-base",
        "digits-finetuned": "digits-pruned",
    }
    # what another one is made from is an input of the run too
    assert {name for name, each in found.items() if each.use_after_commit} == set(
        filter(None, parents.values())
    )


def test_curves_are_drawn_by_the_epochs_of_their_training(offline):
    defined = {
        r.metric.name: r.metric for r in offline[0] if r.WhichOneof("record_type") == "metric"
    }
    for name in ("base/val_top1", "finetune/loss"):
        assert defined[name].step_metric == "epoch"
    assert defined["base/val_top1"].summary.max and not defined["base/loss"].summary.max
    assert logged(offline[0], "history")["epoch"] == 1


def test_operations_by_layer_are_a_table_and_a_chart(offline, run):
    pd.testing.assert_frame_equal(table(offline, "operations/table"), run.operations)
    bars = table(offline, "operations/energy_table")
    last = run.operations["network"] == "fine_grained + fine-tuning"
    assert bars["energy_mj"].tolist() == run.operations[last]["energy_mj"].tolist()


def test_the_page_is_in_the_run(offline, folder):
    found, run_folder = offline
    entry = logged(found, "history")["report"]
    assert entry["_type"] == "html-file"
    assert (run_folder / "files" / entry["path"]).read_text() == (
        folder / "report.html"
    ).read_text()


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (("base",), {"unpruned", "final"}),
        (("base", "uniform"), {"unpruned", "uniform", "pruned", "final"}),
        (("base", "fine_grained"), {"unpruned", "pruned", "final"}),
    ],
)
def test_summary_of_shorter_runs(run, names, stages):
    values = summary(replace(run, results=report_runs.results(names)))
    assert {key.split("/")[0] for key in values} == stages


def test_jobs_of_a_multirun_are_runs_of_their_own(environment, tmp_path):
    identities = []
    for job in range(2):
        loggers = open_loggers(loggers_config(tmp_path / str(job), "wandb"))
        identities.append(wandb_run(loggers).id)
        if job:
            close_loggers(loggers)  # the first one died without closing
    assert len(set(identities)) == 2
    assert len(list(tmp_path.glob("*/wandb/offline-run-*"))) == 2


def test_offline_says_nothing(environment, tmp_path, capfd):
    close_loggers(open_loggers(loggers_config(tmp_path, "wandb")))
    assert capfd.readouterr() == ("", "")


def test_without_wandb_a_line_says_so_and_the_others_stay(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    loggers = open_loggers(loggers_config(tmp_path, "wandb", "csv"))
    assert [type(logger).__name__ for logger in loggers] == ["CSVLogger"]
    (line,) = caplog.messages
    assert "logger=wandb" in line and "not installed" in line and "\n" not in line


def test_without_an_account_the_run_goes_on_offline(environment, monkeypatch, tmp_path, caplog):
    from lightning.pytorch.loggers import WandbLogger

    opened = WandbLogger.experiment.fget

    def refuses_online(logger):
        if not logger._offline:
            raise RuntimeError("No API key configured.\nUse `wandb login`")
        return opened(logger)

    monkeypatch.setattr(WandbLogger, "experiment", property(refuses_online))
    loggers = open_loggers(loggers_config(tmp_path, "wandb", offline=False))
    assert wandb_run(loggers).offline
    close_loggers(loggers)
    assert [r.message for r in caplog.records if r.name.startswith("psvit")] == [
        "logger=wandb goes on offline: No API key configured. Use `wandb login`"
    ]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"offline": "abc"}, "silent='abc': Input should be a valid boolean"),
        ({"notes": 5}, "run_notes=5: Input should be a valid string"),
        ({"project": "a/b"}, "Invalid project name 'a/b'"),
        # not taken for a network that is missing
        ({"project": "a/b", "offline": False, "mode": "offline"}, "Invalid project name 'a/b'"),
        ({"tags": 5}, "'int' object is not iterable"),
    ],
)
def test_a_value_that_wandb_does_not_take_is_one_line(
    environment, tmp_path, values, reason, caplog
):
    with pytest.raises(UserError) as error:
        open_loggers(loggers_config(tmp_path, "wandb", **values))
    assert str(error.value).startswith(f"logger=wandb: {reason}")
    assert not [r for r in caplog.records if r.name.startswith("psvit")]


def test_what_wandb_cannot_do_never_fails_the_run(folder, monkeypatch, tmp_path, caplog):
    log_run(object(), folder)
    log_run(object(), tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    log_run(object(), folder)
    assert len(caplog.messages) == 3
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert not any("\n" in line for line in caplog.messages)


def test_csv_logger_keeps_curves_and_none_keeps_nothing(tmp_path):
    loggers = open_loggers(loggers_config(tmp_path, "csv"))
    loggers[0].log_metrics({"base/val_top1": 91.5}, step=3)
    close_loggers(loggers)
    curves = pd.read_csv(tmp_path / "csv" / "version_0" / "metrics.csv")
    assert curves["base/val_top1"].tolist() == [91.5] and wandb_run(loggers) is None
    assert open_loggers(loggers_config(tmp_path, "none")) == []
    assert open_loggers(None) == []
