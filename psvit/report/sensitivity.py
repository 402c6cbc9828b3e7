"""The two figures of the sensitivity analysis: curves by block, and a map of all groups."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from psvit.report import style
from psvit.report.files import RunFiles

MARKERS = "osD^vP*X<>"


def curves(run: RunFiles) -> Figure | None:
    """The drop against the share removed: a panel for each block, a line for each channel group.

    The colour is the group's kind; the marker tells groups of one kind apart; a band is one
    standard error of the drop, taken image by image. All panels share
    their axes, so that blocks can be compared; drops stand on a square-root scale, so that one
    group that collapses does not press the others together.
    """
    rows = run.sensitivity
    if rows is None:
        return None
    places = style.by_place(rows["group"].unique())
    columns = 3 if len(places) in (3, 5, 6, 9) else min(4, len(places))
    lines = math.ceil(len(places) / columns)
    looks = _looks(rows)
    legend_lines = math.ceil((len(looks) + 2) / 4)
    figure = style.new_figure(max(2.6, 1.4 * lines + 0.45 + 0.17 * legend_lines))
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis, (place, groups) in zip(axes, places.items(), strict=False):
        axis.set_title(place, loc="left", weight="bold")
        axis.axhline(0, color=style.GREY, lw=0.8, ls="--")
        for group in groups:
            curve = rows[(rows["group"] == group) & (rows["removed"] > 0)].sort_values("ratio")
            removed, drop, error = (
                np.array([0.0, *values])
                for values in (
                    100 * curve["removed"] / curve["size"],
                    curve["drop"],
                    curve["drop_stderr"],
                )
            )
            look = looks[_look(group, rows.loc[rows["group"] == group, "kind"].iloc[0])]
            axis.plot(removed, drop, gid=group, clip_on=False, **look)
            band = {"color": look["color"], "alpha": 0.15, "lw": 0}
            axis.fill_between(removed, drop - error, drop + error, **band)
    for axis in axes[len(places) :]:
        axis.set_axis_off()
    # also under a panel of the last line but one, where the last line ends early
    for axis in axes[max(0, len(places) - columns) : len(places)]:
        axis.tick_params(labelbottom=True)
    axes[0].set_xlim(0, 1.03 * float((100 * rows["removed"] / rows["size"]).max()))
    _drop_axis(axes[0], rows["drop"])
    figure.supxlabel("channels of the group removed (%)", fontsize=8)
    shown = "weights solved again, " if mended(run.results) else ""
    label = f"drop in validation top-1 (points)\n{shown}square-root scale"
    figure.supylabel(label, fontsize=8, multialignment="center")
    handles = [Line2D([], [], label=_legend_name(key), **look) for key, look in looks.items()]
    handles.append(Line2D([], [], color=style.GREY, ls="--", label="base network"))
    handles.append(Patch(color=style.GREY, alpha=0.15, lw=0, label="± 1 standard error"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
    return figure


def drop_map(run: RunFiles) -> Figure | None:
    """The drop in points of every channel group (lines) at every ratio asked (columns)."""
    rows = run.sensitivity
    if rows is None:
        return None
    # a group that lost no channel was not tested: its cell is empty, not a drop of zero
    tested = rows[(rows["removed"] > 0) | (rows["ratio"] == 0)]
    drops = tested.pivot(index="group", columns="ratio", values="drop")
    kinds = dict(zip(rows["group"], rows["kind"], strict=True))
    columns = style.listing(kinds)
    longest = max(map(len, columns))
    height = max(2.8, style.LINE * longest + style.MARGIN)
    figure = style.new_figure(height, style.WIDTH if len(columns) > 1 else 4.8)
    norm = PowerNorm(0.5, vmin=0, vmax=max(1.0, float(np.nanmax(drops.to_numpy(), initial=0))))
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, lines in zip(axes, columns, strict=True):
        # rounded as written, so that a cell that says 0.0 has the colour of 0.0
        values = drops.reindex([group for _, group in lines]).to_numpy().round(1) + 0.0
        image = axis.imshow(values, aspect="auto", norm=norm, cmap=_drop_colours())
        _number_cells(axis, values, norm)
        axis.set_xticks(range(drops.shape[1]), [f"{100 * ratio:g}" for ratio in drops.columns])
        axis.set_xlabel("channels removed (%)")
        style.list_groups(axis, lines, kinds, -0.5, longest)
    bar = figure.colorbar(image, ax=axes, extend="min", shrink=min(1.0, 2.6 / height), aspect=16)
    bar.set_label(f"{what(mended(run.results))};\nblue: better than the base network")
    bar.outline.set_visible(False)
    style.kind_legend(figure, kinds.values())
    return figure


def mended(results: dict[str, Any]) -> bool:
    """Whether a run's rows are of what recovery leaves, and not of the network as cut."""
    analysis = results.get("sensitivity") or {}
    return bool(analysis.get("sensitivity.csv", {}).get("mended"))


def what(recovered: bool) -> str:
    """What an axis of sensitivities shows."""
    return f"drop in validation top-1{', weights solved again' if recovered else ''} (points)"


def looks_of_groups(rows: pd.DataFrame) -> dict[str, dict[str, object]]:
    """The look of every group's line, as ``curves`` draws it."""
    looks = _looks(rows)
    kinds = dict(zip(rows["group"], rows["kind"], strict=True))
    return {group: looks[_look(group, kind)] for group, kind in kinds.items()}


def _look(group: str, kind: str) -> tuple[str, str]:
    """What a line's look stands for: its kind, and what the group is within its block."""
    return kind, style.split_name(group)[1]


def _looks(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, object]]:
    """A colour and a marker for every look; kinds in the palette's order, then the network's."""
    found = dict.fromkeys(map(_look, rows["group"], rows["kind"]))
    looks: dict[tuple[str, str], dict[str, object]] = {}
    for kind in style.COLOURS:
        for index, look in enumerate(look for look in found if look[0] == kind):
            looks[look] = {
                "color": style.COLOURS[kind],
                "marker": MARKERS[index % len(MARKERS)],
                "ls": ("-", "--", "-.", ":")[index % 4],
                "mfc": "white" if index % 2 else style.COLOURS[kind],
                "mew": 0.8,
                "lw": 1.0,
            }
    return looks


def _drop_axis(axis: Axes, drops: pd.Series) -> None:
    """A square-root scale, downwards, with as many ticks as it holds."""
    lowest, highest = min(-0.2, drops.min()), max(2.0, 1.1 * drops.max())
    wide = max(highest, -lowest) > 15
    steps = (0, 1, 5, 20, 50, 80) if wide else (0, 0.5, 2, 5, 10)
    style.root_scale(axis, drops.min(), highest, steps)
    axis.set_ylim(highest, 1.2 * lowest)


def _legend_name(look: tuple[str, str]) -> str:
    kind, role = look
    return role if role.rsplit(".", 1)[-1] == kind else f"{role} ({kind})"


def _drop_colours() -> Colormap:
    """Pale yellow to dark brown; blue below zero, white where nothing was measured."""
    return colormaps["YlOrBr"].with_extremes(under="#c6dcf0", bad="white")


def _number_cells(axis: Axes, values: np.ndarray, norm: PowerNorm) -> None:
    for (y, x), drop in np.ndenumerate(values):
        if np.isfinite(drop):
            text = f"{drop:.1f}".replace("-", "−")
            colour = "white" if norm(drop) > 0.6 else "#303030"
            axis.text(x, y, text, size=5.5, ha="center", va="center", color=colour)
