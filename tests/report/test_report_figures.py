import itertools
import json
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import report_runs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from psvit.report import sensitivity, style, write_report
from psvit.report.architecture import architecture
from psvit.report.figures import FIGURES, accuracy_memory, plan_ratios
from psvit.report.files import read_run

EIGHT = report_runs.channel_groups((0, 0))
TWO = dict(list(EIGHT.items())[:2])
WITHOUT_STAGES = {
    f"block{index}.{role}": (kind, 384)
    for index in range(1, 8)
    for role, kind in (("attention.head", "head"), ("mlp.hidden", "hidden"))
} | {"stream": ("stream", 384), "stem.conv1.hidden": ("hidden", 48)}


SIZES = {"64": report_runs.channel_groups(), "8": EIGHT, "without stages": WITHOUT_STAGES}


@pytest.fixture(scope="module", params=SIZES)
def sized(request, tmp_path_factory):
    groups = SIZES[request.param]
    return read_run(report_runs.write_run(tmp_path_factory.mktemp("run"), groups))


# draw, run -> its figure, and the texts seen on it: several tests look at one
SEEN = {}


def drawn(draw, run):
    return drawn_with_texts(draw, run)[0]


def drawn_with_texts(draw, run):
    if (draw, id(run)) not in SEEN:
        texts = {}
        with pytest.MonkeyPatch.context() as patch, style.styled():
            # of the texts it is looked where they stand
            patch.setattr(Text, "draw", lambda text, renderer: texts.update({id(text): text}))
            figure = draw(run)
            FigureCanvasAgg(figure).draw()
        # with the run, so that no other one gets its id
        SEEN[draw, id(run)] = figure, list(texts.values()), run
    return SEEN[draw, id(run)][:2]


def test_error_bars_of_top1_end_at_100_percent(run):
    rows = [{**row, "top1": 99.8, "top1_stderr": 0.4} for row in run.results["rows"]]
    uniform = run.uniform.assign(top1=99.8, images=100)
    certain = replace(run, uniform=uniform, results={**run.results, "rows": rows})
    axes = drawn(accuracy_memory, certain).axes
    # the validation split's bars are upright, the networks' lie
    for axis, direction in zip(axes, (1, 0), strict=True):
        ends = [end for bar in axis.collections for end in bar.get_segments()]
        tops = [segment[:, direction].max() for segment in ends]
        assert tops and max(tops) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("gain", "ticks"), [(0.0, []), (0.7, [-0.5]), (6.0, [-5, -2]), (30.0, [-20, -5])]
)
def test_curves_say_their_scale_and_where_networks_got_better(run, gain, ticks):
    rows = run.sensitivity.assign(drop=1.0)
    rows.loc[0, "drop"] = -gain
    figure = sensitivity.curves(replace(run, sensitivity=rows))
    assert "square-root scale" in figure.get_supylabel()
    assert sorted(tick for tick in figure.axes[0].get_yticks() if tick < 0) == ticks


def test_curves_have_a_panel_a_block_and_a_line_a_group(sized):
    figure = drawn(sensitivity.curves, sized)
    rows = sized.sensitivity
    groups = list(rows["group"].unique())
    panels = [axis for axis in figure.axes if axis.axison]
    blocks = dict.fromkeys(style.split_name(group)[0] for group in groups)
    assert sorted(panel.get_title(loc="left") for panel in panels) == sorted(blocks)
    lines = {line.get_gid(): line for panel in panels for line in panel.lines if line.get_gid()}
    assert sorted(lines) == sorted(groups)
    for group, line in lines.items():
        measured = rows[rows["group"] == group]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (0, 0)  # the base network
        np.testing.assert_allclose(line.get_ydata()[1:], measured["drop"])
        removed = 100 * measured["removed"] / measured["size"]
        np.testing.assert_allclose(line.get_xdata()[1:], removed)
        assert line.get_color() == style.COLOURS[measured["kind"].iloc[0]]


def test_map_shows_the_drop_of_every_group_at_every_ratio(sized):
    figure = drawn(sensitivity.drop_map, sized)
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    shown = np.concatenate([image.filled(np.nan) for image in images])
    shown = shown[~np.isnan(shown).all(axis=1)]
    rows = sized.sensitivity.pivot(index="group", columns="ratio", values="drop")
    expected = rows.loc[sized.sensitivity["group"].unique()].to_numpy()
    np.testing.assert_allclose(shown, expected, atol=0.051)


def test_a_cell_that_was_not_measured_is_empty(run):
    rows = run.sensitivity.reset_index(drop=True).copy()
    rows.loc[0, "removed"] = 0
    rows = rows.drop(index=1)
    rows = rows[rows["group"].isin(list(EIGHT)[:2])]
    figure = drawn(sensitivity.drop_map, replace(run, sensitivity=rows))
    first = figure.axes[0].images[0].get_array().filled(np.nan)[1]
    assert np.isnan(first).tolist() == [True, True, False, False, False]


def test_plan_has_a_bar_a_group_with_its_channels(sized):
    figure = drawn(plan_ratios, sized)
    bars = [bar.get_width() for axis in figure.axes for bar in axis.patches]
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    np.testing.assert_allclose(bars, 100 * sized.plan["ratio"])
    counts = [f"{row.kept}/{row.size}" for row in sized.plan.drop(columns="kind").itertuples()]
    assert [text for text in texts if "/" in text] == counts


def test_groups_that_a_plan_does_not_name_are_kept_whole(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", EIGHT)
    names = list(EIGHT)
    last_only = {"groups": {names[-1]: {"size": EIGHT[names[-1]][1], "kept": [0]}}}
    (folder / "plan.yaml").write_text(json.dumps(last_only))
    plan = read_run(folder).plan
    assert plan["group"].tolist() == names
    assert (plan["kept"] == plan["size"]).tolist() == [True] * 7 + [False]
    (folder / "sensitivity.csv").unlink()
    assert read_run(folder).plan["group"].tolist() == names[-1:]


def test_validation_and_test_accuracies_never_share_a_panel(run):
    validation, test = drawn(accuracy_memory, run).axes
    assert "validation" in validation.get_title(loc="left")
    assert "test" in test.get_title(loc="left")
    (curve,) = (container.lines[0] for container in validation.containers)
    np.testing.assert_allclose(curve.get_ydata().astype(float), run.uniform["top1"])
    (base,) = (line for line in validation.lines if line.get_label() == "base network")
    assert (base.get_xdata()[0], base.get_ydata()[0]) == (0, 97.0)
    assert [c.lines[0].get_xdata()[0] for c in test.containers] == [
        row["top1"] for row in run.results["rows"]
    ]


@pytest.mark.parametrize(
    "draw", [sensitivity.curves, sensitivity.drop_map, plan_ratios, accuracy_memory, architecture]
)
def test_no_text_overlaps_or_leaves_the_page(draw, sized):
    figure, seen = drawn_with_texts(draw, sized)
    texts = [(text.get_text(), text.get_window_extent()) for text in seen if text.get_visible()]
    texts = [(text, box.padded(-0.5)) for text, box in texts if text.strip()]
    assert len(texts) > 10
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(texts, 2):
        assert not first.overlaps(second), (one, other)


def test_files_are_pictures_and_the_same_when_made_again(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    before = dict(matplotlib.rcParams)
    write_report(folder)
    assert dict(matplotlib.rcParams) == before
    files = sorted((folder / "figures").iterdir())
    assert [file.name for file in files] == sorted(
        # the run has no classes.csv
        f"{name}{suffix}"
        for name in FIGURES.keys() - {"classes"}
        for suffix in (".png", ".svg")
    )
    first = [file.read_bytes() for file in files]
    # laid out as matplotlib would
    with style.styled():
        plain = {"dpi": 150, "metadata": {"Software": None}}
        architecture(read_run(folder)).savefig(tmp_path / "plain.png", **plain)
    assert (folder / "figures" / "architecture.png").read_bytes() == (
        tmp_path / "plain.png"
    ).read_bytes()
    write_report(folder)
    assert [file.read_bytes() for file in files] == first
    for file in files[::2]:
        with Image.open(file) as picture:
            assert round(picture.info["dpi"][0]) == 150
            assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("absent", "left"),
    [
        (
            "plan.yaml",
            {"accuracy_memory", "operations", "sensitivity_curves", "sensitivity_map"},
        ),
        ("sensitivity.csv", {"accuracy_memory", "architecture", "operations", "plan"}),
        (
            "uniform.csv",
            {"architecture", "operations", "plan", "sensitivity_curves", "sensitivity_map"},
        ),
    ],
)
def test_an_absent_file_leaves_its_figure_out(tmp_path, absent, left):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    (folder / absent).unlink()
    run = read_run(folder)
    with style.styled():
        assert {name for name, draw in FIGURES.items() if draw(run) is not None} == left


def test_a_figure_of_an_earlier_run_does_not_stay(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    (folder / "figures").mkdir()
    for name in FIGURES:
        (folder / "figures" / f"{name}.png").write_text("of an earlier run")
    for absent in ("plan.yaml", "sensitivity.csv", "uniform.csv"):
        (folder / absent).unlink()
    write_report(folder)
    assert {file.stem for file in (folder / "figures").glob("*.png")} == {"operations"}
    assert (folder / "table.md").is_file() and (folder / "table.csv").is_file()


def test_blocks_stand_in_the_order_of_the_network():
    names = ["stem.hidden", "stage1.block1.a", "stage1.block1.b", "stage1.stream"]
    names.append("stage2.block1.a")
    places = style.by_place(names)
    assert list(places) == ["stem", "stage 1", "stage 1 · block 1", "stage 2 · block 1"]
    assert places["stage 1 · block 1"] == names[1:3]


@pytest.mark.parametrize(
    ("name", "place", "role"),
    [
        ("stage3.block2.mlp.hidden", "stage 3 · block 2", "mlp.hidden"),
        ("stage1a.block1.sep_conv.hidden", "stage 1a · block 1", "sep_conv.hidden"),
        ("stage1.stream", "stage 1", "stream"),
        ("block11.attention.head", "block 11", "attention.head"),
        ("stem.conv1.hidden", "stem", "conv1.hidden"),
        ("stream", "network", "stream"),
    ],
)
def test_place_and_role_of_a_group(name, place, role):
    assert style.split_name(name) == (place, role)
