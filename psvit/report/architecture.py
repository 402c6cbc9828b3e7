"""The figure of a plan: the network from input to output, every channel group as large as it is."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from psvit.report import style
from psvit.report.files import RunFiles

# bars in a line, so that a bar's figure stays readable
LONGEST = 34
# and in one as wide as the page
ENOUGH = 12
# empty bars between two blocks
GAP = 0.7
# what is left of a colour where channels are removed
PALE = 0.22


def architecture(run: RunFiles) -> Figure | None:
    """A bar for each channel group, in the network's order: its height is its size in channels.

    The solid part is kept, the pale one removed, the figure above it the share removed in percent.
    All bars are to one scale; a network of many groups takes several lines, broken between blocks.
    """
    if run.plan is None:
        return None
    rows = run.plan.set_index("group")
    lines = _lines(style.by_place(rows.index))
    widest = max(_width(line) for line in lines)
    # a few bars take a part of the page, and are not broad
    width = style.WIDTH * min(1.0, max(widest / ENOUGH, 0.35))
    figure = style.new_figure(1.75 * len(lines) + 0.45, width)
    axes = figure.subplots(len(lines), 1, sharey=True, squeeze=False)[:, 0]
    for axis, line in zip(axes, lines, strict=True):
        _draw_line(axis, line, rows)
        axis.set_xlim(-0.8, widest - GAP - 0.2)
        axis.set_ylabel("channels")
        axis.yaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylim(0, 1.14 * rows["size"].max())
    style.kind_legend(figure, rows["kind"])
    return figure


def _lines(places: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Blocks broken into as few lines as hold them, about equally long."""
    total = sum(map(len, places.values()))
    count = -(-total // LONGEST)
    lines: list[dict[str, list[str]]] = [{}]
    done = 0
    for place, groups in places.items():
        if lines[-1] and done + len(groups) / 2 > total * len(lines) / count:
            lines.append({})
        lines[-1][place] = groups
        done += len(groups)
    return lines


def _width(line: dict[str, list[str]]) -> float:
    return sum(len(groups) + GAP for groups in line.values())


def _draw_line(axis: Axes, line: dict[str, list[str]], rows: pd.DataFrame) -> None:
    x, ticks, stage = 0.0, {}, None
    for place, groups in line.items():
        here, _, block = place.partition(" · ")
        if stage not in (None, here):
            axis.axvline(x - (1 + GAP) / 2, color=style.GREY, lw=0.6, ls=":")
        if stage != here:
            axis.annotate(
                here,
                (x - 0.5, 1),
                (0, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                weight="bold",
                size=7,
            )
        stage = here
        ticks[x + (len(groups) - 1) / 2] = block
        for group in groups:
            _draw_bar(axis, x, rows.loc[group])
            x += 1
        x += GAP
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.tick_params(axis="x", length=0)
    axis.grid(False, axis="x")


def _draw_bar(axis: Axes, x: float, row: pd.Series) -> None:
    colour = style.COLOURS.get(row["kind"], style.GREY)
    axis.bar(x, row["kept"], 0.82, color=colour)
    axis.bar(
        x,
        row["size"] - row["kept"],
        0.82,
        bottom=row["kept"],
        color=to_rgba(colour, PALE),
        edgecolor=colour,
        linewidth=0.5,
    )
    if row["kept"] < row["size"]:
        text = f"−{100 * row['ratio']:.0f}"
        axis.annotate(
            text,
            (x, row["size"]),
            (0, 1.5),
            textcoords="offset points",
            size=5,
            ha="center",
            va="bottom",
            color=style.GREY,
        )
