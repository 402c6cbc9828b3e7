"""The figure of many runs: accuracy lost against memory saved, policies and the Pareto front."""

import math
import re
import textwrap
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from psvit.report import style
from psvit.report.comparison import POLICIES
from psvit.report.job_rows import DONE, FINE_TUNING
from psvit.report.jobs import NONE, UNPRUNED

# Okabe and Ito's palette; the rival of all is grey
LOOKS = {
    "uniform": (style.GREY, "o"),
    "global": ("#CC79A7", "v"),
    "fine_grained": ("#0072B2", "s"),
    "prioritized": ("#D55E00", "^"),
    "budgeted": ("#009E73", "D"),
}
MORE_LOOKS = (("#E69F00", "P"), ("#56B4E9", "X"), ("#000000", "*"))
DASHES = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (2, 1, 2, 4)))
# how much of a marker is filled, between none (nothing was done) and all of it
FILLS = ("bottom", "left", "top", "right")
FRONT = {"color": "#dcdcdc", "lw": 6, "zorder": 1, "label": "Pareto front"}
# behind the only point of a front, which no line shows
DISC = {"marker": "o", "ms": 12, "mew": 0}
# more lines than this, and each recovery has a panel of its own
CROWDED = 6
MOST_COLUMNS = 3
# more panels than this, as of a search, and networks of all settings share one, unjoined
MOST_PANELS = 9
# what has panels of its own where it varies
APART = ("saves", "importance", "rounds", "settings")


def write_pareto(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every model and dataset of a comparison: ``pareto.png`` and ``.svg`` in ``folder``.

    Where there are several, their names are the files' too. A figure drawn before of what is no
    longer in the table is removed.

    Returns:
        The files written.
    """
    networks = list(table.groupby(["model", "dataset"], sort=False))
    written: list[Path] = []
    with style.styled():
        for (model, dataset), rows in networks:
            figure = pareto(rows)
            if figure is not None:
                name = f"pareto-{model}-{dataset}" if len(networks) > 1 else "pareto"
                written += style.save(figure, folder, re.sub(r"[^\w.-]+", "-", name))
    for path in folder.glob("pareto*"):
        if path not in written and path.suffix in (".png", ".svg"):
            path.unlink()
    return written


def pareto(table: pd.DataFrame) -> Figure | None:
    """Drop in top-1 against memory saving; error bars are deviations over seeds.

    Lines join the targets of one policy, importance and recovery. The colour is the policy; dashes
    and the markers' fill are the recovery, or panels where there are many lines; each importance
    has panels of its own where a policy has several.
    A broad pale line, or a disc behind a single point, is the front of a panel.

    Args:
        table: rows of ``comparison_table`` of one model and dataset.

    Returns:
        None where nothing was pruned.
    """
    rows = table[(table["status"] == DONE) & ~table["policy"].isin(UNPRUNED)]
    rows = rows[rows["drop"].notna()].assign(saves=rows["target"].map(_saves))
    if not len(rows):
        return None
    recoveries = sorted(set(rows["recovery"]), key=_recovery_order)
    rows = rows.sort_values("recovery", key=lambda column: column.map(recoveries.index))
    # each policy may have an importance of its own
    within = {"importance": rows.groupby("policy")["importance"].nunique().max()}
    apart = [name for name in APART if within.get(name, rows[name].nunique()) > 1]
    crowded = rows.groupby(["policy", "recovery"]).ngroups > CROWDED and len(recoveries) > 1
    if crowded:
        apart.append("recovery")
    searched = "settings" in apart and rows.groupby(apart).ngroups > MOST_PANELS
    if searched:
        apart.remove("settings")
    panels = list(rows.groupby(apart, sort=False)) if apart else [((), rows)]
    # the recoveries of one importance side by side
    panels.sort(key=lambda panel: panel[0][: len(apart) - crowded])
    columns = len(recoveries) if crowded else len(panels)
    if columns > MOST_COLUMNS:
        columns = 2 if columns == 4 else MOST_COLUMNS
    figure, axes = _panels(len(panels), columns)
    looks = _looks(rows["policy"])
    # a panel's only recovery is drawn as the others'
    kinds = _recovery_looks([] if crowded else recoveries, searched)
    fronts = set()
    for axis, (values, panel) in zip(axes, panels, strict=True):
        title = style.plain("\n".join(map(_title, apart, values)))
        axis.set_title(title, loc="left", weight="bold")
        axis.axhline(0, color="black", lw=0.8, zorder=1)
        best = front(panel)
        alone = len(best) == 1
        fronts.add(alone)
        shape = DISC if alone else {}
        axis.plot(100 * best["memory_saving"], best["drop"], **FRONT, **shape)
        for (policy, recovery), line in panel.groupby(["policy", "recovery"]):
            kind = kinds.get(recovery, (DASHES[0], "full"))
            _draw(axis, line.sort_values("memory_saving"), *looks[policy], *kind)
    _scale(axes[0], rows)
    figure.supxlabel("memory saving (% of the base network's parameters)", fontsize=8)
    scale = ", square-root scale" if axes[0].get_yscale() == "function" else ""
    figure.supylabel(f"drop in top-1 (points{scale})", fontsize=8)
    named = looks
    if "importance" not in apart and rows["importance"].nunique() > 1:
        used = rows.groupby("policy")["importance"].first()
        named = {f"{policy} ({used[policy]})": look for policy, look in looks.items()}
    handles = _handles(named, kinds, fronts, rows["seeds"])
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(panels) == 1 else 4)
    return figure


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """The networks that no other one beats: whatever saves more loses more. By rising saving.

    Savings of one whole percent count as alike: a target is met by more or less.
    """
    rows = rows.assign(percent=rows["memory_saving"].round(2))
    rows = rows.sort_values(["percent", "drop"], ascending=[False, True])
    lowest_so_far = rows["drop"].cummin().shift(fill_value=math.inf)
    return rows[rows["drop"] < lowest_so_far].drop(columns="percent").iloc[::-1]


def _panels(number: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of ``number`` panels that share their axes."""
    lines = math.ceil(number / columns)
    height, width = (3.4, 5.2) if number == 1 else (2.3 * lines, style.WIDTH)
    figure = style.new_figure(height + 0.8, width)
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis in axes[number:]:
        axis.set_axis_off()
    # also under a panel of the last line but one, where the last line ends early
    for axis in axes[max(0, number - columns) : number]:
        axis.tick_params(labelbottom=True)
    return figure, axes[:number]


def _draw(axis: Axes, line: pd.DataFrame, colour: str, marker: str, dashes: Any, fill: str) -> None:
    x, y = 100 * line["memory_saving"], line["drop"]
    axis.plot(x, y, color=colour, ls=dashes, **_marker(marker, colour, fill), zorder=3)
    axis.errorbar(
        x,
        y,
        xerr=100 * line["memory_saving_sd"].fillna(0),
        yerr=line["drop_sd"].fillna(0),
        color=colour,
        ls="none",
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        alpha=0.7,
        zorder=2,
    )


def _scale(axis: Axes, rows: pd.DataFrame) -> None:
    """Drops downwards, so that better is up; on a square-root scale where they differ much."""
    deviation = rows["drop_sd"].fillna(0)
    low, high = min(0.0, (rows["drop"] - deviation).min()), (rows["drop"] + deviation).max()
    if high > 10:
        style.root_scale(axis, low, high, (0, 1, 2, 5, 10, 20, 40, 60, 80))
        top, bottom = style.root(low), style.root(high)
        room = 0.06 * (bottom - top)
        axis.set_ylim(style.square(bottom + room), style.square(top - room))
    else:
        room = 0.06 * max(high - low, 1.0)
        axis.set_ylim(high + room, low - room)
    axis.set_xlim(0, 104 * (rows["memory_saving"] + rows["memory_saving_sd"].fillna(0)).max())


def _looks(policies: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every policy, in the order of the reports."""
    present = set(policies)
    more = cycle(MORE_LOOKS)
    return {name: LOOKS[name] for name in POLICIES if name in present} | {
        name: next(more) for name in sorted(present - set(POLICIES))
    }


def _recovery_looks(recoveries: list[str], searched: bool) -> dict[str, tuple[Any, str]]:
    """Dashes and the markers' fill of each recovery: hollow where nothing was done."""
    looks: dict[str, tuple[Any, str]] = {}
    for place, name in enumerate(recoveries):
        dash = "none" if searched else DASHES[place % len(DASHES)]
        last = place == len(recoveries) - 1
        fill = "full" if last else "none" if name == NONE else FILLS[(place - 1) % len(FILLS)]
        looks[name] = dash, fill
    return looks


def _marker(marker: str, colour: str, fill: str) -> dict[str, Any]:
    """A marker with a white rim or, where it is not wholly filled, white inside."""
    if fill == "full":
        return {"marker": marker, "mec": "white", "mew": 0.4, "ms": 4.5}
    # a hollow marker lets no line through
    half = {"mfc": "white", "fillstyle": "full"} if fill == "none" else {"fillstyle": fill}
    return {"marker": marker, "mec": colour, "mew": 0.9, "ms": 4.5, "mfcalt": "white", **half}


def _handles(
    looks: dict[str, Any], kinds: dict[str, Any], fronts: set[bool], seeds: pd.Series
) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, label=policy)
        for policy, (colour, marker) in looks.items()
    ]
    if len(kinds) > 1:
        for name, (dash, fill) in kinds.items():
            shape = {"ls": dash, **_marker("o", style.GREY, fill)}
            handles.append(
                Line2D([], [], color=style.GREY, label=_title("recovery", name), **shape)
            )
    # a line where any panel has one
    shape = {"ls": "none", **DISC} if fronts == {True} else {}
    handles.append(Line2D([], [], **FRONT, **shape))
    handles.append(Line2D([], [], color="black", lw=0.8, label="base network"))
    if seeds.max() > 1:
        least = "" if seeds.min() == seeds.max() else f"{seeds.min()} to "
        label = f"± s.d., {least}{seeds.max()} seeds"
        handles.append(Line2D([], [], color=style.GREY, marker="|", ms=9, ls="none", label=label))
    return handles


def _title(name: str, value: Any) -> str:
    if name == "recovery" and FINE_TUNING not in value:
        return "no recovery" if value == NONE else f"recovery {value}"
    if name == "settings":
        # as many digits as a reader compares, and no break inside a number
        short = re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.3g}", value)
        lines = textwrap.wrap(short, 30, break_long_words=False, break_on_hyphens=False)
        return "\n".join(lines) or "no further settings"
    return str(value) if name in ("recovery", "saves") else f"{name} {value}"


def _recovery_order(recovery: str) -> tuple[bool, bool, str]:
    return FINE_TUNING in recovery, recovery not in (NONE, FINE_TUNING), recovery


def _saves(target: str) -> str:
    """What a target is a share of; a ratio of uniform pruning is drawn with the memory targets."""
    if target.startswith("drop"):
        return "target: accuracy drop"
    named = [part.split(" ")[0] for part in target.split(", ") if not part[:1].isdigit()]
    return "target: " + (", ".join(sorted(set(named) - {"ratio", ""})) or "memory")
