"""The figure of what an image costs by layer: operations and energy, before and after."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from psvit.report import style
from psvit.report.files import RunFiles

# what a layer reads -> its colour
INPUTS = {
    "real": style.COLOURS["stream"],
    "spikes": style.COLOURS["hidden"],
    "integer": style.COLOURS["value"],
}
# column, from its unit to that of the axis, label
QUANTITIES = (
    ("macs", 1e-6, "dense MACs (10⁶)"),
    ("sops", 1e-6, "SOPs (10⁶)"),
    ("energy_mj", 1e3, "energy (µJ)"),
)
OUTLINE = {"facecolor": "none", "edgecolor": style.GREY, "linewidth": 0.6}


def operations(run: RunFiles) -> Figure | None:
    """MACs, synaptic operations and energy of one image in every layer.

    Filled: the last network of the table; outlined: the first, the base network. A network with
    more layers than a page has lines is summed by block.
    """
    if run.operations is None:
        return None
    names = list(dict.fromkeys(run.operations["network"]))
    before, after = (_layers(run.operations, name) for name in (names[0], names[-1]))
    columns = style.listing(before.index)
    if max(map(len, columns)) > 45:
        before, after = _by_block(before), _by_block(after)
        columns = style.listing(before.index)
    lines_high = max(map(len, columns))
    figure = style.new_figure(style.LINE * lines_high + style.MARGIN + 0.3)
    axes = figure.subplots(1, 3 * len(columns), squeeze=False)[0]
    for index, lines in enumerate(columns):
        panels = axes[3 * index : 3 * index + 3]
        for axis, (name, unit, label) in zip(panels, QUANTITIES, strict=True):
            _draw(axis, lines, unit * before[name], unit * after[name], after["input"])
            axis.set_ylim(lines_high - 0.4, -0.6)
            axis.set_xlim(0, 1.05 * max(1e-9, unit * before[name].max(), unit * after[name].max()))
            axis.set_xlabel(label.replace(" (", "\n("))
            axis.locator_params(axis="x", nbins=2)
            axis.xaxis.set_major_formatter("{x:g}")
        style.list_groups(panels[0], lines, dict.fromkeys(before.index, ""), 0, lines_high)
        for axis in panels:
            axis.grid(True, axis="x")
    handles = [Patch(color=INPUTS[kind], label=f"reads {kind}") for kind in _inputs(after)]
    handles += [Patch(label=f"{names[0]}, before", **OUTLINE)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.suptitle(f"one image; filled: {names[-1]}", x=0.01, ha="left", size=8)
    return figure


def _inputs(rows: pd.DataFrame) -> list[str]:
    """The kinds of inputs that occur, in the palette's order."""
    return [kind for kind in INPUTS if (rows["input"] == kind).any()]


def _layers(table: pd.DataFrame, network: str) -> pd.DataFrame:
    return table[table["network"] == network].drop_duplicates("layer").set_index("layer")


def _by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums over the layers of each block; it reads what most of its MACs read."""
    places = pd.Series({layer: _block(layer) for layer in rows.index})
    sums = rows.groupby(places, sort=False)[[name for name, *_ in QUANTITIES]].sum()
    largest = rows["macs"].groupby(places, sort=False).idxmax()
    return sums.assign(input=rows.loc[largest, "input"].to_numpy())


def _block(layer: str) -> str:
    place = style.split_name(layer)[0]
    parts = place.replace(" · ", ".").replace(" ", "")
    return f"{parts}.all" if parts else layer


def _draw(axis: Axes, lines: list, before: pd.Series, after: pd.Series, reads: pd.Series) -> None:
    for y, (_, layer) in enumerate(lines):
        if layer is None:
            continue
        if layer in after.index:
            axis.barh(y, after[layer], 0.66, color=INPUTS.get(reads[layer], style.GREY))
        axis.barh(y, before[layer], 0.66, **OUTLINE)
    axis.set_yticks([])
    axis.grid(False, axis="y")
    axis.spines[["left", "bottom"]].set_visible(False)
