from dataclasses import replace

import pytest

from psvit.report import style
from psvit.report.architecture import architecture


@pytest.fixture(scope="module")
def axes(run):
    with style.styled():
        return architecture(run).axes


def bars(axis):
    """(x, bottom, height) of every bar, left to right."""
    found = [(bar.get_x(), bar.get_y(), bar.get_height()) for bar in axis.patches]
    return sorted(found)


def test_every_group_is_as_high_as_it_is_large(axes, run):
    found = [bar for axis in axes for bar in bars(axis)]
    kept, removed = found[::2], found[1::2]
    assert [height for *_, height in kept] == list(run.plan["kept"])
    assert [bottom + height for _, bottom, height in removed] == list(run.plan["size"])
    assert all(bottom == 0 for _, bottom, _ in kept)


def test_lines_share_a_scale_and_bars_do_not_touch(axes):
    assert len({axis.get_ylim() for axis in axes}) == 1
    assert len({axis.get_xlim() for axis in axes}) == 1
    for axis in axes:
        places = sorted({x for x, *_ in bars(axis)})
        assert min(b - a for a, b in zip(places, places[1:], strict=False)) > 0.99


def test_what_is_removed_is_told_in_percent(axes, run):
    told = [text.get_text() for axis in axes for text in axis.texts]
    for row in run.plan.itertuples():
        text = f"−{100 * row.ratio:.0f}"
        if row.kept < row.size:
            told.remove(text)
    # what is left over names the stages
    assert all(text.startswith("stage ") for text in told)


def test_without_a_plan_there_is_none(run):
    assert architecture(replace(run, plan=None)) is None


def test_a_small_network_has_a_narrow_figure_and_whole_channels(run, axes):
    few = run.plan.head(2).assign(size=[10, 6], kept=[7, 3], ratio=[0.3, 0.5])
    with style.styled():
        small = architecture(replace(run, plan=few))
        small.draw_without_rendering()
    assert small.get_figwidth() < axes[0].figure.get_figwidth() / 2
    (axis,) = small.axes
    # the bars reach from side to side, and ticks are numbers of channels
    left, right = axis.get_xlim()
    assert (bars(axis)[-1][0] - left) / (right - left) > 0.5
    assert all(tick == round(tick) for tick in axis.get_yticks())
