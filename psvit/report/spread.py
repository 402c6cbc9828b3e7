"""The figure of many runs' sensitivities: mean and spread over the runs, a panel for each block."""

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from psvit.report import style
from psvit.report.sensitivity import looks_of_groups, what


def spread(rows: pd.DataFrame, mended: bool = False) -> Figure | None:
    """The drop against the share removed: mean over the runs, and a band from lowest to highest.

    Runs that share a base network have the same curves; they count once. All order channels by
    one importance.

    Args:
        rows: the sensitivities of all runs, with columns ``run`` and ``drop`` (points below the
            run's base network); groups of one name are those of one network.
        mended: whether they are of what recovery leaves.

    Returns:
        None where no two runs differ.
    """
    curves = rows.pivot_table(index=["group", "ratio"], columns="run", values="drop")
    curves = curves.T.drop_duplicates().T
    if curves.shape[1] < 2:
        return None
    places = style.by_place(rows["group"].unique())
    columns = 3 if len(places) in (3, 5, 6, 9) else min(4, len(places))
    lines = math.ceil(len(places) / columns)
    looks = looks_of_groups(rows)
    figure = style.new_figure(max(2.6, 1.5 * lines + 0.6 + 0.17 * math.ceil(len(looks) / 4)))
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    shares = (100 * rows["removed"] / rows["size"]).groupby([rows["group"], rows["ratio"]]).mean()
    for axis, (place, groups) in zip(axes, places.items(), strict=False):
        axis.set_title(place, loc="left", weight="bold")
        axis.axhline(0, color=style.GREY, lw=0.8, ls="--")
        for group in groups:
            curve, x = curves.loc[group], shares.loc[group]
            look = looks[group]
            axis.plot([0, *x], [0, *curve.mean(axis=1)], gid=group, **look)
            band = {"color": look["color"], "alpha": 0.12, "lw": 0}
            axis.fill_between(x, curve.min(axis=1), curve.max(axis=1), **band)
    for axis in axes[len(places) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(places) - columns) : len(places)]:
        axis.tick_params(labelbottom=True)
    axes[0].invert_yaxis()
    figure.supxlabel("channels of the group removed (%)", fontsize=8)
    figure.supylabel(what(mended), fontsize=8)
    named: dict[str, dict[str, Any]] = {}
    for group, look in looks.items():
        named.setdefault(style.split_name(group)[1], look)
    handles = [Line2D([], [], label=name, **look) for name, look in named.items()]
    handles.append(Line2D([], [], color=style.GREY, ls="--", label="base network"))
    title = f"mean of {curves.shape[1]} runs; bands: lowest to highest"
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(4, len(handles)), title=title
    )
    return figure
