"""The figure of firing before and after a cut, and whether a network fires at all."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from psvit.report import style

BASE, PRUNED = style.GREY, style.COLOURS["hidden"]
OUTLINE = {"facecolor": "none", "edgecolor": "black", "linewidth": 0.8}
SHARES = ["silent", "silent_base", "saturated", "saturated_base"]
SILENT, FULL = style.COLOURS["query_key"], style.COLOURS["stream"]


def dead(rows: pd.DataFrame, when: str = "") -> bool:
    """Whether no spike reaches the classifier, on any image measured.

    That is so if the head's own neuron layer is silent or, where the head has none, every neuron
    layer of the residual stream that it reads.

    Args:
        rows: the diagnostics.
        when: ``""`` after the cut, ``"_base"`` before it.
    """
    last = rows.iloc[-1]
    if last["segment"] == "head":
        read = rows.iloc[[-1]]
    elif last["group"].endswith("stream"):
        read = rows[rows["group"] == last["group"]]
    else:
        # currents, which no neuron need have made
        return False
    return bool((read[f"silent{when}"] == 1).all())


def firing_drift(rows: pd.DataFrame) -> Figure:
    """The rate of every neuron layer before and after, and its silent and saturated channels.

    These have no panel where no channel is either.
    """
    silent_network = dead(rows)
    shares = bool((rows[SHARES] > 0).any(axis=None))
    rows = rows.set_index("layer")
    columns = style.listing(rows.index)
    lines_high = max(map(len, columns))
    height = style.LINE * lines_high + style.MARGIN + 0.3
    figure = style.new_figure(height, style.WIDTH if len(columns) > 1 else 4.8)
    widths = (5, 3) if shares else (1,)
    panels, wide = len(widths), widths * len(columns)
    axes = figure.subplots(1, len(wide), squeeze=False, width_ratios=wide)[0]
    widest = 104 * max(0.01, rows["rate"].max(), rows["rate_base"].max())
    for column, lines in enumerate(columns):
        rate, *beside = axes[panels * column : panels * (column + 1)]
        for y, (_, layer) in enumerate(lines):
            if layer is not None:
                _draw_rate(rate, y, rows.loc[layer])
        style.list_groups(rate, lines, dict.fromkeys(rows.index, ""), 0, lines_high)
        layers = [layer for _, layer in lines if layer is not None]
        for label, layer in zip(rate.get_yticklabels(), layers, strict=True):
            label.set_color(SILENT if rows.loc[layer, "silent"] == 1 else "black")
        rate.set_xlim(-0.02 * widest, widest)
        rate.set_xlabel("firing rate (%)")
        for share in beside:
            for y, (_, layer) in enumerate(lines):
                if layer is not None:
                    _draw_shares(share, y, rows.loc[layer])
            share.set_xlim(0, 100)
            share.set_ylim(rate.get_ylim())
            share.set_yticks([])
            share.spines[["left", "bottom"]].set_visible(False)
            share.set_xlabel("channels (%)")
        for axis in (rate, *beside):
            axis.grid(True, axis="x")
    if silent_network:
        figure.suptitle("dead network, not a saving", color=SILENT, weight="bold")
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=3)
    return figure


def _draw_rate(rate: Axes, y: int, row: pd.Series) -> None:
    before, after = 100 * row["rate_base"], 100 * row["rate"]
    rate.plot([before, after], [y, y], color="#a8c8de", lw=1.6, zorder=2, solid_capstyle="butt")
    rate.plot(before, y, "o", ms=4, mfc="white", mec=BASE, mew=0.9, zorder=3)
    wholly = row["silent"] == 1
    rate.plot(
        after,
        y,
        "X" if wholly else "o",
        ms=5 if wholly else 3.6,
        mec="white",
        mew=0.3,
        color=SILENT if wholly else PRUNED,
        zorder=4,
        clip_on=False,
    )


def _draw_shares(share: Axes, y: int, row: pd.Series) -> None:
    silent, full = 100 * row["silent"], 100 * row["saturated"]
    share.barh(y, silent, 0.66, color=SILENT)
    share.barh(y, full, 0.66, left=100 - full, color=FULL)
    silent, full = 100 * row["silent_base"], 100 * row["saturated_base"]
    for left, width in ((0, silent), (100 - full, full)):
        if width > 0:
            share.barh(y, width, 0.66, left=left, **OUTLINE)


def _legend(rows: pd.DataFrame) -> list:
    """What is drawn, and no more."""
    dot = {"ls": "", "marker": "o"}
    handles: list = [
        Line2D([], [], ms=4, mfc="white", mec=BASE, mew=0.9, label="base network", **dot),
        Line2D([], [], ms=3.6, color=PRUNED, label="pruned network", **dot),
    ]
    if (rows["silent"] == 1).any():
        look = {"ms": 5, "color": SILENT, "ls": "", "marker": "X"}
        handles.append(Line2D([], [], label="wholly silent layer", **look))
    for name, colour in (("silent", SILENT), ("saturated", FULL)):
        if (rows[name] > 0).any():
            handles.append(Patch(color=colour, label=f"{name} channels"))
    if (rows[["silent_base", "saturated_base"]] > 0).any(axis=None):
        handles.append(Patch(label="in the base network", **OUTLINE))
    return handles
