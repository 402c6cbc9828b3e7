import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import report_runs
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from torch import nn
from wandb_records import finished, logged

from psvit.measure import firing
from psvit.models import create_model
from psvit.report import diagnostics, style, write_report
from psvit.report.files import DIAGNOSTICS_COLUMNS, RunFiles, read_run
from psvit.report.firing import dead, firing_drift
from psvit.report.loggers import close_loggers, open_loggers, wandb_run

TWO = dict(list(report_runs.channel_groups((0, 0)).items())[:2])
ROWS = [
    # layer, segment, group, rates, drift, silent, saturated, channels: each before and after
    ("stem.neuron", "stem", "", 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 8, 8),
    ("stage1.b.query", "stage1.b", "b.query, b.head", 0.2, 0.1, -0.1, 0.0, 0.5, 0.0, 0.0, 10, 4),
    ("stage1.b.value", "stage1.b", "b.value, b.head", 0.2, 0.4, 0.2, 0.1, 0.0, 0.0, 0.25, 10, 8),
    ("head.neuron", "head", "stage1.stream", 0.3, 0.2, -0.1, 0.25, 0.25, 0.0, 0.0, 8, 8),
]


def frame(rows=ROWS):
    return pd.DataFrame(rows, columns=DIAGNOSTICS_COLUMNS)


def silenced(rows, *layers, when="silent"):
    rows = rows.copy()
    rows.loc[rows["layer"].isin(layers), [when, when.replace("silent", "rate")]] = [1.0, 0.0]
    return rows


def layers(count):
    """Diagnostics of ``count`` neuron layers of a Meta-SpikeFormer, made up."""
    names = ("neuron", "query_neuron", "key_neuron", "value_neuron", "attention_neuron")
    places = [f"stage3.block{block}" for block in range(1, 40)]
    paths = [
        f"{place}.{name}"
        for place in places
        for name in (*(f"attn.{name}" for name in names), "mlp.neuron1", "mlp.neuron2")
    ]
    paths = [*paths[: count - 1], "head.neuron"]
    numbers = np.random.default_rng(0).uniform(0, 0.5, (count, 6)).round(3)
    rows = pd.DataFrame(numbers, columns=DIAGNOSTICS_COLUMNS[3:5] + DIAGNOSTICS_COLUMNS[6:10])
    rows = rows.assign(layer=paths, group="g", channels_base=64, channels=40)
    rows["segment"] = rows["layer"].str.split(".").str[:-2].str.join(".").replace("", "head")
    rows["drift"] = rows["rate"] - rows["rate_base"]
    rows.loc[3, ["rate", "silent", "saturated"]] = [0.0, 1.0, 0.0]
    return rows[DIAGNOSTICS_COLUMNS]


@pytest.fixture
def made(tmp_path):
    """Makes a run's folder, with diagnostics and a prediction, and their part of its report."""

    def make(rows=None, prediction=None):
        folder = report_runs.write_run(tmp_path / "run", TWO)
        if rows is not None:
            rows.to_csv(folder / "diagnostics.csv", index=False)
        results = report_runs.results()
        if prediction is not None:
            results["prediction"] = prediction
        (folder / "results.json").write_text(json.dumps(results))
        diagnostics.write_diagnostics(read_run(folder))
        return folder

    return make


def text_of(folder):
    return (folder / "diagnostics.md").read_text()


def test_the_report_reads_what_the_measurement_writes():
    assert diagnostics.SATURATED == firing.SATURATED
    assert diagnostics.SEPARATOR == firing.SEPARATOR


def test_rows_are_read_as_they_were_measured(made):
    pd.testing.assert_frame_equal(read_run(made(frame())).diagnostics, frame())


def test_groups_are_means_over_the_channels_of_their_layers():
    groups = diagnostics.by_group(frame()).set_index("group")
    # lost to silence first, then to saturation, then as the network runs
    assert groups.index.tolist() == ["b.query", "b.head", "b.value", "stem.neuron", "stage1.stream"]
    head = groups.loc["b.head"]
    assert (head["layers"], head["channels_base"], head["channels"]) == (2, 20, 12)
    assert head["silent"] == pytest.approx((0.5 * 4 + 0.0 * 8) / 12)
    assert head["silent_base"] == pytest.approx((0.0 * 10 + 0.1 * 10) / 20)
    assert head["rate"] == pytest.approx((0.1 * 4 + 0.4 * 8) / 12)
    assert groups.loc["b.value", "saturated"] == 0.25


def test_the_section_names_what_went_silent_or_saturated(made):
    text = text_of(made(frame()))
    assert "Mean rate of the 4 neuron layers: 30.0 % before, 30.0 % after." in text
    assert "Largest drift: `stage1.b.value` 20.0 → 40.0 %, `stage1.b.query` 20.0 → 10.0" in text
    # 1 + 2 of 36 channels; 2 + 2 of 28
    assert "Silent channels: 8.3 % before, 14.3 % after." in text
    assert "| b.query | 1 | 10 → 4 | 0.0 → 50.0 | 0.0 → 0.0 | 20.0 → 10.0 |" in text
    assert "| b.value | 1 | 10 → 8 | 10.0 → 0.0 | 0.0 → 25.0 | 20.0 → 40.0 |" in text
    # as silent as before
    assert "stage1.stream" not in text
    assert "silent neuron layers" not in text and "ead network" not in text
    assert "Prediction" not in text


def test_a_dead_network_is_called_dead_and_a_silent_layer_silent(made):
    dead = silenced(frame(), "head.neuron")
    text = text_of(made(dead))
    assert "**Dead network, not a saving" in text and "before the cut" not in text
    assert "Wholly silent neuron layers: 1 of 4. Gone silent: `head.neuron`." in text
    text = text_of(made(silenced(dead, "head.neuron", when="silent_base")))
    assert "it was so before the cut" in text and "Gone silent" not in text
    text = text_of(made(silenced(frame(), "stage1.b.query")))
    assert "Dead" not in text and "Gone silent: `stage1.b.query`" in text


@pytest.mark.parametrize("name", ["sdt_v1", "spikformer"])
def test_a_network_whose_answer_is_always_the_same_is_dead(name):
    torch.manual_seed(0)
    small = {"embed_dims": 16, "depth": 1, "num_heads": 2, "image_size": 32, "num_classes": 5}
    network = create_model(name, **small, strides=[2, 2, 2, 1], time_steps=2)
    nn.init.normal_(network.head.fc.weight)
    x = torch.randn(4, 3, 32, 32)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        # the batch's own statistics
        norm.momentum = None
    network(x)
    network.eval()
    last = "head.neuron" if name == "sdt_v1" else "stage1.block1.mlp.neuron2"

    def rows():
        return firing.diagnose(network, network, [(x, None)], torch.device("cpu"))

    def answers():
        with torch.no_grad():
            return network(x).unique(dim=0)

    assert not dead(rows()) and len(answers()) > 1
    # one silent layer of many leaves the network alive: its shortcut goes on
    network.stage1.block1.mlp.bn1.bias.data[:] = -1e3
    assert not dead(rows()) and len(answers()) > 1
    for norm in norms:
        norm.bias.data[:] = -1e3
    found = rows()
    assert found["layer"].iloc[-1] == last
    assert dead(found) and len(answers()) == 1


@pytest.mark.parametrize(
    ("measure", "predicted", "measured", "says"),
    [
        ("loss", 0.4, 0.5, "(increase of the cross-entropy): 0.4 nats predicted, 0.5 measured: it"),
        ("kl", 0.4, 1.2, "it did not hold; the cut cost 3 times what was predicted."),
        ("kl", 0.4, 0.2, "it did not hold; the cut cost 0.5 times what was predicted."),
        ("loss", 0.2, -0.1, "it did not hold.**"),
        # as many digits as plan.md has
        ("kl", 0.04821, 0.092839, "0.0482 nats predicted, 0.0928 measured: **it did not hold"),
        ("loss", 0.0, 0.0, "it held"),
    ],
)
def test_a_prediction_is_compared_with_what_was_measured(made, measure, predicted, measured, says):
    record = {"measure": measure, "predicted": predicted, "measured": measured}
    folder = made(frame(), record)
    assert says in text_of(folder)
    values = diagnostics.summary(read_run(folder))
    assert (values["prediction/predicted"], values["prediction/measured"]) == (predicted, measured)
    assert values["prediction/held"] == ("it held" in text_of(folder))


def test_what_recovery_left_is_said_beside_it(made):
    record = {"measure": "kl", "predicted": 0.5, "measured": 0.5, "measured_after_recovery": 0.1}
    assert "0.5 measured, 0.1 after recovery: it held" in text_of(made(frame(), record))


def test_a_prediction_of_what_recovery_leaves_is_compared_with_that(made):
    record = {"measure": "kl", "of": "recovered", "predicted": 0.1, "measured": 0.5}
    folder = made(frame(), record | {"measured_after_recovery": 0.1})
    assert "0.1 nats predicted, 0.1 measured after recovery (0.5 as cut): it held" in text_of(
        folder
    )
    assert diagnostics.summary(read_run(folder))["prediction/measured"] == 0.1


def test_a_policy_that_predicts_nothing_is_not_judged(made):
    record = {"measure": None, "predicted": float("nan"), "measured": 0.1}
    folder = made(frame(), record)
    assert "Prediction" not in text_of(folder)
    assert "prediction/held" not in diagnostics.summary(read_run(folder))


def test_of_a_network_that_was_silent_no_prediction_holds(made):
    both = silenced(silenced(frame(), "head.neuron"), "head.neuron", when="silent_base")
    folder = made(both, {"measure": "kl", "predicted": 0.0, "measured": 0.0})
    assert "it was so before the cut" in text_of(folder)
    assert "Prediction" not in text_of(folder)
    assert "prediction/held" not in diagnostics.summary(read_run(folder))


def test_without_diagnostics_nothing_is_written_and_nothing_stays(made):
    folder = made(frame())
    for name in ("sensitivity.csv", "uniform.csv", "plan.yaml"):
        (folder / name).unlink()
    write_report(folder)
    written = [folder / "diagnostics.md"]
    written += [folder / "figures" / f"firing_drift{suffix}" for suffix in (".png", ".svg")]
    assert all(path.is_file() for path in written)
    (folder / "diagnostics.csv").unlink()
    write_report(folder)
    assert not any(path.exists() for path in written)
    assert read_run(folder).diagnostics is None
    assert diagnostics.summary(read_run(folder)) == {}


@pytest.mark.parametrize("count", [10, 60, 105])
def test_the_figure_shows_every_layer_and_no_text_overlaps(count, monkeypatch, tmp_path):
    run = RunFiles(tmp_path, {}, {}, None, None, None, None, layers(count))
    if count == 10:
        run = replace(run, diagnostics=silenced(run.diagnostics, "head.neuron"))
    rows = run.diagnostics
    seen = {}
    monkeypatch.setattr(Text, "draw", lambda text, renderer: seen.update({id(text): text}))
    with style.styled():
        figure = firing_drift(rows)
        FigureCanvasAgg(figure).draw()
    rates, shares = figure.axes[::2], figure.axes[1::2]
    # a line, the base's mark and the pruned one's
    lines = [line for axis in rates for line in axis.lines]
    assert len(lines) == 3 * count
    np.testing.assert_allclose(
        [line.get_xdata()[0] for line in lines[1::3]], 100 * rows["rate_base"]
    )
    np.testing.assert_allclose([line.get_xdata()[0] for line in lines[2::3]], 100 * rows["rate"])
    crosses = [index for index, line in enumerate(lines[2::3]) if line.get_marker() == "X"]
    assert crosses == rows.index[rows["silent"] == 1].tolist()
    bars = [bar for axis in shares for bar in axis.patches]
    np.testing.assert_allclose([bar.get_width() for bar in bars[::4]], 100 * rows["silent"])
    ends = [bar.get_x() + bar.get_width() for bar in bars[1::4]]
    np.testing.assert_allclose(ends, 100)
    np.testing.assert_allclose([bar.get_width() for bar in bars[1::4]], 100 * rows["saturated"])
    texts = [
        (text.get_text(), text.get_window_extent().padded(-0.5))
        for text in seen.values()
        if text.get_visible() and text.get_text().strip()
    ]
    assert len(texts) > count
    assert any("dead network" in text for text, _ in texts) == (count == 10)
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(texts, 2):
        assert not first.overlaps(second), (one, other)


def test_wandb_has_the_table_the_figure_and_the_summary(made, monkeypatch, tmp_path):
    from omegaconf import OmegaConf

    from psvit.report.dashboard import log_run

    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    record = {"measure": "kl", "predicted": 0.4, "measured": 0.5}
    folder = made(silenced(frame(), "head.neuron"), record)
    config = OmegaConf.create({"paths": {"output_dir": str(tmp_path / "out")}, "tags": []})
    config.logger = OmegaConf.load(report_runs.Path(__file__).parents[2] / "conf/logger/wandb.yaml")
    loggers = open_loggers(config.logger)
    log_run(wandb_run(loggers), folder)
    close_loggers(loggers)
    (file,) = (tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb")
    found = finished(file)
    history = logged(found, "history")
    table = json.loads((file.parent / "files" / history["firing/table"]["path"]).read_text())
    shown = pd.DataFrame(table["data"], columns=table["columns"])
    pd.testing.assert_frame_equal(shown, read_run(folder).diagnostics, check_dtype=False)
    picture = file.parent / "files" / history["figures/firing_drift"]["path"]
    assert picture.read_bytes() == (folder / "figures" / "firing_drift.png").read_bytes()
    values = logged(found, "summary")
    assert values["firing/dead"] == 1 and values["prediction/held"] == 1
    assert values["firing/silent"] == pytest.approx((2 + 8) / 28)
    assert values["final/top1"] == 97.0
