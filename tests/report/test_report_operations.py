from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from psvit.report import style
from psvit.report.classes import MOST, classes
from psvit.report.operations import operations

LAYERS = {
    "stage1.downsample.conv": ("real", 400, 0),
    "stage1.block1.mlp.conv1": ("spikes", 800, 90),
    "stage1.block1.mlp.conv2": ("integer", 600, 30),
    "head.fc": ("spikes", 10, 1),
}


def table(layers, networks=("base", "uniform", "last")):
    rows = [
        (name, layer, reads, 1e6 * macs / 2**cut, 1e6 * sops / 2**cut, 1e-3 * macs / 2**cut)
        for cut, name in enumerate(networks)
        for layer, (reads, macs, sops) in layers.items()
    ]
    return pd.DataFrame(rows, columns=["network", "layer", "input", "macs", "sops", "energy_mj"])


def drawn(draw, run):
    with style.styled():
        return draw(run)


def widths(axis, outlined):
    return [bar.get_width() for bar in axis.patches if (bar.get_facecolor()[3] == 0) == outlined]


def test_layers_of_the_first_and_the_last_network_in_units_of_the_axes(run):
    figure = drawn(operations, replace(run, operations=table(LAYERS)))
    macs, sops, energy = figure.axes
    assert widths(macs, outlined=True) == [400, 800, 600, 10]
    assert widths(macs, outlined=False) == [100, 200, 150, 2.5]
    assert widths(sops, outlined=True) == [0, 90, 30, 1]
    np.testing.assert_allclose(widths(energy, outlined=True), [400, 800, 600, 10])
    assert "µJ" in energy.get_xlabel()


def test_a_layer_has_one_line_over_all_panels(run):
    figure = drawn(operations, replace(run, operations=table(LAYERS)))
    assert len({axis.get_ylim() for axis in figure.axes}) == 1


def test_what_a_layer_reads_is_its_colour(run):
    figure = drawn(operations, replace(run, operations=table(LAYERS)))
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches if bar.get_facecolor()[3]]
    assert colours[1] == colours[3] and len(set(colours)) == 3
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["reads real", "reads spikes", "reads integer", "base, before"]


def test_many_layers_are_summed_by_block(run):
    many = {
        f"stage3.block{block}.mlp.conv{i}": ("spikes", i, 0)
        for block in range(1, 31)
        for i in range(5)
    }
    figure = drawn(operations, replace(run, operations=table(many)))
    found = [width for axis in figure.axes[::3] for width in widths(axis, outlined=True)]
    np.testing.assert_allclose(found, [10] * 30)


def of_classes(count, networks=("base", "last")):
    rows = [
        (name, f"c{i}", 50, 90.0, 90.0 - (i if name == "last" else 0), -float(i), 1.5)
        for name in networks
        for i in range(count)
    ]
    names = ["network", "class", "images", "top1_base", "top1", "change", "change_stderr"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.parametrize("count", [4, MOST + 20])
def test_the_classes_that_changed_most_are_drawn(run, count):
    axis = drawn(classes, replace(run, classes=of_classes(count))).axes[0]
    shown = range(max(0, count - MOST), count)
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"c{i} (50)" for i in shown]
    points = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert points == [90.0 - i for i in shown]
    assert (f"{count} classes" in axis.get_title(loc="left")) == (count > MOST)


def test_error_bars_end_at_none_and_all_of_a_class(run):
    frame = of_classes(3)
    frame.loc[frame["network"] == "last", "top1"] = [100.0, 99.0, 1.0]
    axis = drawn(classes, replace(run, classes=frame)).axes[0]
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in axis.collections]
    # 1.5 points each way
    assert ends == [[98.5, 100.0], [97.5, 100.0], [0.0, 2.5]]


def test_names_of_classes_are_drawn_as_they_are(run, tmp_path, caplog, recwarn):
    names = [r"$\bad$", "cost $^$ a", "日本 語", "$x_1$"]
    frame = of_classes(4)
    frame["class"] = frame["class"].map(dict(zip(["c0", "c1", "c2", "c3"], names, strict=True)))
    with style.styled():
        figure = classes(replace(run, classes=frame))
        style.save(figure, tmp_path, "classes")
    svg = (tmp_path / "classes.svg").read_text()
    assert r"<!-- $\bad$ (50) -->" in svg and "<!-- $x_1$ (50) -->" in svg
    assert not list(recwarn)
    # one line, where there is no font for them
    assert len(caplog.records) <= 1


def test_without_a_second_network_no_class_has_paid(run):
    assert classes(replace(run, classes=of_classes(3, ("base",)))) is None
    assert classes(run) is None


def test_without_counts_nothing_is_drawn(run):
    assert operations(replace(run, operations=None)) is None
