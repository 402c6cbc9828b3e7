"""The figure of which classes paid for the cut."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from psvit.report import style
from psvit.report.files import RunFiles

# more classes than these, and those that changed most are drawn
MOST = 30
BASE, LOST, GAINED = style.GREY, style.COLOURS["query_key"], style.COLOURS["hidden"]


def classes(run: RunFiles) -> Figure | None:
    """Accuracy of every class in the base network and in the last one of the table.

    The error bar is one standard error of the change: only images on which the two differ count. It
    ends at 0 and 100 %.
    """
    if run.classes is None:
        return None
    name = run.classes["network"].iloc[-1]
    rows = run.classes[run.classes["network"] == name]
    # a run that pruned nothing has no change to show
    if name == run.classes["network"].iloc[0]:
        return None
    total = len(rows)
    if total > MOST:
        changed = rows["change"].abs().nlargest(MOST).index
        rows = rows[rows.index.isin(changed)]
    figure = style.new_figure(0.2 * len(rows) + 1.1, 4.8)
    axis = figure.subplots()
    for y, row in enumerate(rows.itertuples()):
        colour = LOST if row.change < 0 else GAINED
        axis.plot([row.top1_base, row.top1], [y, y], color=colour, lw=1.4, alpha=0.5, zorder=2)
        axis.errorbar(
            row.top1,
            y,
            xerr=style.bars(row.top1, row.change_stderr),
            color=colour,
            marker="o",
            ms=4,
            elinewidth=0.8,
            capsize=2,
            zorder=3,
        )
        axis.plot(row.top1_base, y, "o", ms=4.5, mfc="none", mec=BASE, mew=0.9, zorder=4)
    labels = [
        style.plain(f"{kind} ({images})")
        for kind, images in zip(rows["class"], rows["images"], strict=True)
    ]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("top-1 of the class (%), ± 1 standard error of the change")
    axis.set_ylabel(f"class ({run.split} images)")
    shown = f"; the {MOST} of {total} classes that changed most" if total > MOST else ""
    axis.set_title(f"base → {name}{shown}", loc="left", weight="bold")
    dot = {"ls": "", "marker": "o"}
    handles = [
        Line2D([], [], ms=4.5, mfc="none", mec=BASE, mew=0.9, label="base network", **dot),
        Line2D([], [], ms=4, color=GAINED, label="as good or better", **dot),
        Line2D([], [], ms=4, color=LOST, label="worse", **dot),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
