import numpy as np
import pandas as pd
import pytest
from comparison_runs import write_job
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text

from psvit.report import style
from psvit.report.comparison import comparison_table, read_runs
from psvit.report.pareto import FRONT, LOOKS, MORE_LOOKS, front, pareto, write_pareto


def written(folder, policies, recoveries=("none",), importances=("l2",), seeds=(0, 1)):
    """The comparison of jobs whose drops are known: 10 × target × (policy's number + 1) ± 1."""
    for place, policy in enumerate(policies):
        for recovery in recoveries:
            for importance in importances:
                for target in (0.4, 0.2):
                    for seed in seeds:
                        drop = 10 * target * (place + 1) + (-1, 1)[seed]
                        found = {"base": 90.0, "pruned": 90.0 - drop}
                        if recovery != "none":
                            found["recovered"] = 90.0 - drop / 2
                        options = {"recovery": recovery, "importance": importance}
                        name = f"{policy}-{recovery}-{importance}-{target}-{seed}"
                        write_job(
                            folder / name, policy, seed, found, target, saving=target, **options
                        )
    return comparison_table(read_runs([folder]))


def lines(axis, colour):
    """What is drawn in a colour: (x, y, dashes) of each line that joins points."""
    found = [line for line in axis.lines if line.get_color() == colour and line.get_label()]
    joined = [line for line in found if line.get_linestyle() != "None"]
    return [(list(line.get_xdata()), list(line.get_ydata()), line.is_dashed()) for line in joined]


def titles(figure):
    return [axis.get_title("left") for axis in figure.axes if axis.axison]


def test_a_line_goes_through_the_means_in_the_order_of_savings(tmp_path):
    figure = pareto(written(tmp_path, ["uniform", "fine_grained"]))
    (axis,) = figure.axes
    ((x, y, dashed),) = lines(axis, LOOKS["fine_grained"][0])
    assert x == pytest.approx([20.0, 40.0]) and y == pytest.approx([4.0, 8.0])
    assert not dashed
    # an error bar's segment: mean ± sample standard deviation of -1 and 1, sqrt(2)
    heights = {
        round(float(abs(end[1] - start[1])), 6)
        for collection in axis.collections
        for start, end in collection.get_segments()
    }
    assert round(2 * 2**0.5, 6) in heights
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    assert "%" in figure.get_supxlabel() and "points" in figure.get_supylabel()


def test_a_scale_that_is_not_linear_says_so_and_has_ticks_above_the_base_network(tmp_path):
    table = written(tmp_path, ["uniform", "fine_grained"])
    linear = pareto(table)
    assert "scale" not in linear.get_supylabel()
    wide = pareto(table.assign(drop=[-6.0, 3.0, 20.0, 45.0]))
    assert "square-root scale" in wide.get_supylabel()
    (axis,) = wide.axes
    # 16 points down are twice as far as 4, 4 up as far as 4 down
    at = {drop: axis.transData.transform((0, drop))[1] for drop in (-4, 0, 4, 16)}
    assert at[0] - at[16] == pytest.approx(2 * (at[0] - at[4]))
    assert at[-4] - at[0] == pytest.approx(at[0] - at[4])
    assert [tick for tick in axis.get_yticks() if tick < 0] == [-1, -5]
    assert "−5" in [label.get_text() for label in axis.get_yticklabels()]


def test_on_the_front_is_what_no_other_network_beats(tmp_path):
    # saving, drop: the third saves less and loses more than the second, the last two save 50 %
    points = [(0.1, 0.5), (0.3, 1.0), (0.2, 2.0), (0.504, 4.0), (0.5, 3.0)]
    table = pd.DataFrame(points, columns=["memory_saving", "drop"])
    assert front(table).values.tolist() == [[0.1, 0.5], [0.3, 1.0], [0.5, 3.0]]
    (axis,) = pareto(written(tmp_path, ["uniform", "fine_grained"])).axes
    (line,) = [line for line in axis.lines if line.get_label() == FRONT["label"]]
    # uniform's drops are half of the other's
    assert line.get_xydata() == pytest.approx(np.array([[20.0, 2.0], [40.0, 4.0]]))


def test_dashes_tell_recoveries_apart_where_lines_are_few(tmp_path):
    figure = pareto(written(tmp_path, ["budgeted"], ["both"]))
    (axis,) = figure.axes
    drawn = lines(axis, LOOKS["budgeted"][0])
    assert sorted(dashed for _, _, dashed in drawn) == [False, True]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"budgeted", "no recovery", "recovery both", "base network"} <= set(named)


def filled(line):
    """How much of a line's markers is not white: all, none or a side."""
    if to_hex(line.get_markerfacecolor()) == "#ffffff":
        return "none"
    return "all" if line.get_fillstyle() == "full" else line.get_fillstyle()


def test_recoveries_of_a_single_target_are_told_apart_by_fill(tmp_path):
    table = written(tmp_path, ["budgeted"], ["both"])
    figure = pareto(table[table["target"] == "20 %"])
    (axis,) = figure.axes
    points = [line for line in axis.lines if line.get_marker() == LOOKS["budgeted"][1]]
    fills = {float(line.get_ydata()[0]): filled(line) for line in points}
    assert fills == {2.0: "none", 1.0: "all"}
    legend = figure.legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    shown = dict(zip(labels, map(filled, legend.get_lines()), strict=True))
    assert (shown["no recovery"], shown["recovery both"]) == ("none", "all")
    # a front of one point is a disc, in the legend too
    for line in (*axis.lines, *legend.get_lines()):
        if line.get_label() == FRONT["label"]:
            assert line.get_marker() == "o" and line.get_markersize() > 9


def test_no_two_of_four_recoveries_have_one_fill(tmp_path):
    found = {"base": 90.0, "pruned": 70.0, "recovered": 80.0, "finetuned": 88.0}
    write_job(tmp_path / "0", "fine_grained", 0, found, recovery="bn")
    write_job(tmp_path / "1", "fine_grained", 0, {"base": 90.0, "pruned": 70.0, "finetuned": 87.0})
    (axis,) = pareto(comparison_table(read_runs([tmp_path]))).axes
    points = [line for line in axis.lines if line.get_marker() == LOOKS["fine_grained"][1]]
    fills = {float(line.get_ydata()[0]): filled(line) for line in points}
    assert len(set(fills.values())) == 4
    assert (fills[20.0], fills[2.0]) == ("none", "all")


def test_recoveries_have_panels_where_lines_are_many(tmp_path):
    policies = ["uniform", "fine_grained", "prioritized", "budgeted"]
    figure = pareto(written(tmp_path, policies, ["both"], seeds=(0,)))
    assert titles(figure) == ["no recovery", "recovery both"]
    for axis, factor in zip(figure.axes, (1.0, 0.5), strict=True):
        for place, policy in enumerate(policies):
            ((_, y, dashed),) = lines(axis, LOOKS[policy][0])
            whole = [10 * target * (place + 1) - 1 for target in (0.2, 0.4)]
            assert y == pytest.approx([factor * drop for drop in whole]) and not dashed


def test_importances_have_panels(tmp_path):
    table = written(tmp_path, ["fine_grained"], importances=["taylor", "l2"])
    assert titles(pareto(table)) == ["importance l2", "importance taylor"]


def test_policies_of_different_importances_share_a_panel_and_say_which(tmp_path):
    for policy, importance in (("fine_grained", "l2"), ("budgeted", "fisher")):
        found = {"base": 90.0, "pruned": 85.0}
        write_job(tmp_path / policy, policy, 0, found, importance=importance)
    figure = pareto(comparison_table(read_runs([tmp_path])))
    assert titles(figure) == [""]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"fine_grained (l2)", "budgeted (fisher)"} <= set(named)


def test_the_trials_of_a_search_share_a_panel_unjoined(tmp_path):
    table = written(tmp_path, ["fine_grained"], seeds=(0,))
    trials = [table.assign(settings=f"finetune.lr={0.001410690937355148 * k}") for k in range(1, 6)]
    few = pareto(pd.concat(trials[:2]))
    assert titles(few) == ["finetune.lr=0.00141", "finetune.lr=0.00282"]
    (axis,) = pareto(pd.concat([*trials, *(t.assign(rounds=2) for t in trials)])).axes[:1]
    assert lines(axis, LOOKS["fine_grained"][0]) == []
    assert "finetune" not in axis.get_title("left")


def test_no_two_policies_look_alike():
    looks = [*LOOKS.values(), *MORE_LOOKS]
    assert len({to_hex(colour) for colour, _ in looks}) == len({m for _, m in looks}) == len(looks)


def test_a_sweep_over_the_ratio_is_the_uniform_curve(tmp_path):
    for ratio, drop in ((0.1, 1.0), (0.3, 9.0), (0.2, 4.0)):
        found = {"base": 90.0, "pruned": 90.0 - drop}
        options = {"target": None, "saving": ratio, "ratio": ratio}
        write_job(tmp_path / str(ratio), "uniform", 0, found, **options)
    (axis,) = pareto(comparison_table(read_runs([tmp_path]))).axes
    ((x, y, _),) = lines(axis, LOOKS["uniform"][0])
    assert x == pytest.approx([10.0, 20.0, 30.0]) and y == pytest.approx([1.0, 4.0, 9.0])


def test_nothing_pruned_is_no_figure_and_an_old_one_goes(tmp_path):
    table = written(tmp_path / "runs", ["uniform"])
    names = [path.name for path in write_pareto(table, tmp_path / "figures")]
    assert names == ["pareto.png", "pareto.svg"]
    assert all((tmp_path / "figures" / name).stat().st_size > 1000 for name in names)
    write_job(tmp_path / "base", "none", 0, {"base": 90.0})
    nothing = comparison_table(read_runs([tmp_path / "base"]))
    assert write_pareto(nothing, tmp_path / "figures") == []
    assert list((tmp_path / "figures").iterdir()) == []


@pytest.mark.parametrize("importances", [["l2"], ["l2", "taylor"]])
def test_no_title_or_legend_is_cut_off(tmp_path, importances):
    policies = ["uniform", "global", "fine_grained", "prioritized", "budgeted"]
    table = written(tmp_path, policies[: 5 if len(importances) > 1 else 3], ["both"], importances)
    with style.styled():
        figure = pareto(table)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [figure.legends[0].get_window_extent()]
    boxes += [title.get_window_extent() for title in figure.findobj(match=is_title)]
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height


def is_title(artist):
    return isinstance(artist, Text) and artist.get_text().startswith("importance")
