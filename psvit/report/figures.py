"""The figures of a run, drawn from its files: uniform pruning, the plan, and the sensitivity's."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psvit.report import sensitivity, style
from psvit.report.architecture import architecture
from psvit.report.classes import classes
from psvit.report.files import RunFiles, standard_error
from psvit.report.operations import operations


def accuracy_memory(run: RunFiles) -> Figure | None:
    """Accuracy and memory: uniform pruning on the validation split; beside it, in a panel of its
    own because it is another set of images, the networks of the table on theirs."""
    if run.uniform is None:
        return None
    figure = style.new_figure(max(3.0, 0.5 * len(run.results["rows"]) + 0.8))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _uniform_curve(left, run, run.uniform)
    _networks(right, run)
    return figure


def _uniform_curve(axis: Axes, run: RunFiles, rows: pd.DataFrame) -> None:
    alone = run.sensitivity
    saving, top1 = 100 * rows["memory_saving"], rows["top1"]
    base = rows[rows["ratio"] == 0]
    if alone is not None and len(base):
        alone = alone[alone["removed"] > 0]
        axis.plot(
            100 * alone["memory_saving"],
            # perhaps measured on fewer images
            base["top1"].iloc[0] - alone["drop"],
            ".",
            color=style.COLOURS["stream"],
            ms=5,
            mew=0,
            zorder=1,
            label="one channel group alone",
        )
    axis.errorbar(
        saving,
        top1,
        style.bars(top1, standard_error(top1, rows["images"])),
        color=style.COLOURS["hidden"],
        marker="o",
        elinewidth=0.8,
        capsize=2,
        label="uniform pruning, its ratio beside it",
    )
    for x, y, ratio in zip(saving, top1, rows["ratio"], strict=True):
        if ratio > 0:
            axis.annotate(
                f"{100 * ratio:g} %",
                (x, y),
                (5, 5),
                textcoords="offset points",
                size=6.5,
                color=style.GREY,
                bbox=style.PAPER,
            )
    if len(base):
        axis.plot(0, base["top1"].iloc[0], "D", color="black", ms=6, zorder=3, label="base network")
    target = run.results.get("target_memory_saving")
    if target:
        label = f"target saving {100 * target:g} %"
        axis.axvline(100 * target, color=style.GREY, ls=":", lw=1, zorder=0, label=label)
    axis.set_title("validation split, no fine-tuning", loc="left", weight="bold")
    axis.set_xlabel("memory saving (% of the base network's parameters)")
    axis.set_ylabel("top-1 (%), ± 1 standard error")
    axis.margins(0.1)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _networks(axis: Axes, run: RunFiles) -> None:
    rows, base = run.results["rows"], run.row("base")
    if base is not None:
        axis.axvline(base["top1"], color=style.GREY, ls="--", lw=0.8, zorder=0)
    for y, row in enumerate(rows):
        colour = "black" if row is base else style.COLOURS["hidden"]
        axis.errorbar(
            row["top1"],
            y,
            xerr=style.bars(row["top1"], row.get("top1_stderr") or 0),
            color=colour,
            marker="D" if row is base else "o",
            ms=5,
            elinewidth=0.8,
            capsize=2,
        )
    labels = [
        row["name"].replace(" + ", "\n+ ")
        + ("" if row is base else f"\nsaves {100 * row['memory_saving']:.1f} %")
        for row in rows
    ]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.margins(x=0.1)
    axis.set_title(f"{run.split} set", loc="left", weight="bold")
    axis.set_xlabel("top-1 (%), ± 1 standard error")


def plan_ratios(run: RunFiles) -> Figure | None:
    """The share of every channel group that the plan removes, with the channels it keeps."""
    plan = run.plan
    if plan is None:
        return None
    rows = plan.set_index("group")
    columns = style.listing(rows.index)
    lines_high = max(map(len, columns))
    height = style.LINE * lines_high + style.MARGIN
    figure = style.new_figure(height, style.WIDTH if len(columns) > 1 else 4.8)
    axes = figure.subplots(1, len(columns), sharex=True, squeeze=False)[0]
    longest = max(0.05, rows["ratio"].max())
    for axis, lines in zip(axes, columns, strict=True):
        for y, (_, group) in enumerate(lines):
            if group is None:
                continue
            row = rows.loc[group]
            axis.barh(y, 100 * row["ratio"], 0.72, color=style.COLOURS.get(row["kind"], style.GREY))
            axis.text(
                100 * row["ratio"] + 2 * longest,
                y,
                f"{row['kept']}/{row['size']}",
                size=6,
                va="center",
                color=style.GREY,
                bbox=style.PAPER,
            )
        style.list_groups(axis, lines, rows["kind"].to_dict(), 0, lines_high)
        axis.grid(True, axis="x")
        axis.set_xlim(0, 125 * longest)
        axis.set_xlabel("channels removed (%)")
    policy = f"plan: {run.policy}" if run.policy else "plan"
    figure.suptitle(f"{policy}. Beside each bar: channels kept / all", x=0.01, ha="left", size=8)
    style.kind_legend(figure, rows["kind"])
    return figure


FIGURES = {
    "sensitivity_curves": sensitivity.curves,
    "sensitivity_map": sensitivity.drop_map,
    "accuracy_memory": accuracy_memory,
    "plan": plan_ratios,
    "architecture": architecture,
    "operations": operations,
    "classes": classes,
}


def write_figures(run: RunFiles) -> list[Path]:
    """Write every figure that the run's files allow into ``figures/``; remove one they do not.

    Returns:
        The PNG and SVG files written.
    """
    folder = run.folder / "figures"
    written: list[Path] = []
    with style.styled():
        for name, draw in FIGURES.items():
            figure = draw(run)
            if figure is not None:
                written += style.save(figure, folder, name)
                continue
            for suffix in (".png", ".svg"):
                (folder / name).with_suffix(suffix).unlink(missing_ok=True)
    return written
