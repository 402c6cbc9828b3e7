"""The one look of the figures, and how seventy channel groups are laid out to stay readable."""

import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from psvit.files import write_whole

_log = logging.getLogger(__name__)

# Okabe and Ito's palette: told apart by colour-blind readers and in print.
COLOURS = {
    "hidden": "#0072B2",
    "query_key": "#D55E00",
    "value": "#009E73",
    "head": "#CC79A7",
    "stream": "#E69F00",
}
GREY = "#6b6b6b"
# for letters that the first font lacks, where they are installed
OTHER_FONTS = (
    *("Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Yu Gothic"),
    *("Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Arabic"),
)
MISSING = re.compile(r"Glyph (\d+) .* missing from")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    # the same run gives the same bytes
    "svg.hashsalt": "psvit",
}
# a component of a group's name that says where it is
PLACE = re.compile(r"(stage|block|layer)_?(\d+[a-z]?)")
# keeps grid lines out of a label
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
# two columns of a paper, in inches
WIDTH = 7.2
# a line of a list of groups, and what stands above and below the list, in inches
LINE, MARGIN = 0.155, 0.9


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, drawn by Agg and known to no window system. Sizes are in inches."""
    return Figure(figsize=(width, max(height, 1.8)), layout="constrained")


def styled() -> AbstractContextManager[None]:
    """A context in which figures are made and saved; the caller's own settings come back after."""
    installed = set(font_manager.get_font_names())
    fonts = [STYLE["font.family"], *(name for name in OTHER_FONTS if name in installed)]
    return matplotlib.rc_context({**STYLE, "font.family": fonts})


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name.png`` (150 dpi) and ``name.svg`` and return their paths.

    The figure is laid out once, for both.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.set_dpi(150)
    # ``savefig`` would lay it out, and draw it to nowhere, for each of them
    with warnings.catch_warnings(record=True) as told:
        png = FigureCanvasAgg(figure).print_png
        write_whole(paths[0], lambda path: png(path, metadata={"Software": None}))
        figure.set_layout_engine("none")
        svg = FigureCanvasSVG(figure).print_svg
        write_whole(paths[1], lambda path: svg(path, metadata={"Date": None, "Creator": None}))
    _tell(told, paths[0])
    return paths


def _tell(told: Iterable[warnings.WarningMessage], path: Path) -> None:
    """Pass warnings on; those of letters that no font has, one for each letter, as one line."""
    letters = set()
    for each in told:
        if found := MISSING.match(str(each.message)):
            letters.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if letters:
        shown = "".join(sorted(letters))
        _log.warning("%s: no font that is installed has the letters %s", path, shown)


def plain(text: str) -> str:
    """A label that says ``text`` as it is: between two dollar signs matplotlib sees a formula."""
    return text.replace("$", r"\$")


def bars(percent: Any, error: Any) -> Any:
    """Lengths ``[2, N]`` of error bars that end at 0 and 100 %, below and above ``percent`` [N]."""
    percent, error = np.atleast_1d(percent), np.atleast_1d(error)
    return np.stack([np.minimum(error, percent), np.minimum(error, 100 - percent)])


def root(values: Any) -> Any:
    """Square roots; those of negative values are negative."""
    return np.sign(values) * np.sqrt(np.abs(values))


def square(values: Any) -> Any:
    """What ``root`` came from."""
    return np.sign(values) * np.square(values)


def root_scale(axis: Axes, low: float, high: float, steps: Sequence[float]) -> None:
    """Give y a square-root scale, and ticks at ``steps``; at most two of them below zero.

    Args:
        axis: its limits are left as they are.
        low: the lowest value shown, at most 0.
        high: the highest.
        steps: from 0 upwards.
    """
    axis.set_yscale("function", functions=(root, square))
    ticks = [step for step in steps if step <= high]
    room = 0.07 * (root(high) - root(low))
    below = [0.0]
    for step in steps:
        if step <= -low and root(step) - root(-below[-1]) >= room:
            below.append(-step)
    ticks += below[1:][-2:]
    axis.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])


def split_name(group: str) -> tuple[str, str]:
    """Where a group is, and what it is: ``stage3.block2.mlp.hidden`` -> (``stage 3 · block 2``,
    ``mlp.hidden``)."""
    parts = group.split(".")
    here = 0
    while here < min(2, len(parts) - 1) and PLACE.fullmatch(parts[here]):
        here += 1
    here = here or min(1, len(parts) - 1)
    place = [PLACE.sub(r"\1 \2", part) for part in parts[:here]]
    return " · ".join(place) or "network", ".".join(parts[here:])


def by_place(groups: Iterable[str]) -> dict[str, list[str]]:
    """Groups gathered by block, in the network's order; a whole stage's come before its blocks'."""
    places: dict[str, list[str]] = {}
    for group in groups:
        places.setdefault(split_name(group)[0], []).append(group)
    stages = list(dict.fromkeys(place.split(" · ")[0] for place in places))
    order = sorted(places, key=lambda place: (stages.index(place.split(" · ")[0]), "·" in place))
    return {place: places[place] for place in order}


def listing(groups: Iterable[str], longest: int = 40) -> list[list[tuple[str, str | None]]]:
    """Lines for a tall list of groups, in two even columns where one would pass ``longest`` lines.

    Returns:
        Columns of lines (label, group): a block's heading (group None), then its groups. No block
        is broken over two columns.
    """
    places = by_place(groups)
    total = sum(1 + len(members) for members in places.values())
    columns: list[list[tuple[str, str | None]]] = [[]]
    for place, members in places.items():
        middle = len(columns[0]) + (1 + len(members)) / 2
        if total > longest and len(columns) == 1 and columns[0] and middle > total / 2:
            columns.append([])
        columns[-1].append((place, None))
        columns[-1].extend((split_name(group)[1], group) for group in members)
    return columns


def list_groups(
    axis: Axes, lines: list[tuple[str, str | None]], kinds: dict[str, str], x: float, height: int
) -> None:
    """Name the lines of one column of ``listing`` beside the axis: blocks bold, groups coloured.

    Args:
        x: where a block's heading starts, in the axis's own units.
        height: lines of the longest column, so that all columns have lines of one height.
    """
    members = [(y, label, kinds[group]) for y, (label, group) in enumerate(lines) if group]
    axis.set_yticks([y for y, *_ in members], [label for _, label, _ in members])
    for tick, (_, _, kind) in zip(axis.get_yticklabels(), members, strict=True):
        tick.set_color(COLOURS.get(kind, GREY))
    for y, (label, group) in enumerate(lines):
        if group is None:
            axis.text(x, y, label, weight="bold", size=7, va="center", bbox=PAPER)
    axis.set_ylim(height - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)


def kind_legend(figure: Figure, kinds: Iterable[str]) -> None:
    """Name the kinds' colours below the figure, in the palette's order."""
    shown = set(kinds)
    handles = [Patch(color=colour, label=kind) for kind, colour in COLOURS.items() if kind in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
