"""The final table of a run: as data, Markdown, and in the terminal."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from psvit.report.files import RunFiles


def three_digits(value: float) -> str:
    """A figure with three significant digits: ``0.0150``, ``1.50``, ``1,500``."""
    whole = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, 2 - whole)}f}"


@dataclass(frozen=True)
class Column:
    """A column of the table: what it is called, and how a figure in it is written."""

    heading: str
    write: Callable[[float], str]
    # what a shown figure is counted in: 1e9 for operations, as the field counts them
    unit: float = 1.0

    def text(self, value: float) -> str:
        """The figure as a reader sees it."""
        if math.isnan(value):
            return ABSENT
        text = self.write(value / self.unit)
        # a drop that rounds to nothing has no sign
        negligible = float(text.replace(",", "")) == 0
        return text.lstrip("-") if negligible else text.replace("-", "−")


ABSENT = "–"
SILENT = "silent"
# what a network without spikes has not saved
OF_SPIKES = ("sops", "energy_mj", "energy_integer_macs_mj")

# Groups of columns that stand side by side; where the page is narrow, one below another. A measured
# and a published figure never share a column, nor a group.
GROUPS = {
    "size": {
        "top1": Column("top-1 %", "{:.2f}".format),
        "top1_stderr": Column("± s.e.", "{:.2f}".format),
        "drop": Column("drop (points)", "{:.2f}".format),
        "drop_stderr": Column("± s.e. of drop", "{:.2f}".format),
        "top5": Column("top-5 %", "{:.2f}".format),
        "agreement": Column("same answer %", "{:.1f}".format),
        "parameters": Column("parameters", "{:,.0f}".format),
        "memory_mb": Column("memory MB", "{:.3f}".format),
        "memory_saving_percent": Column("memory saving %", "{:.1f}".format),
    },
    "work": {
        "macs": Column("MACs G", three_digits, 1e9),
        "sops": Column("SOPs G", three_digits, 1e9),
        "energy_mj": Column("energy mJ", three_digits),
        "energy_integer_macs_mj": Column("energy mJ, integers as MACs", three_digits),
        "firing_rate_percent": Column("firing rate %", "{:.1f}".format),
        "silent_channels_percent": Column("silent channels %", "{:.1f}".format),
        "peak_activation_bytes": Column("activations MB", three_digits, 1e6),
        "latency_ms": Column("latency ms", "{:.2f}".format),
        "speedup": Column("speed-up", "{:.2f}".format),
        "throughput": Column("images/s", "{:,.0f}".format),
    },
    "published": {
        "published_top1": Column("published top-1 %", "{:.1f}".format),
        "published_drop": Column("published drop (points)", "{:.1f}".format),
        "published_memory_saving_percent": Column("published memory saving %", "{:.1f}".format),
    },
}
COLUMNS = {name: column for group in GROUPS.values() for name, column in group.items()}
# what a terminal shows of a row; the rest is in table.md and table.csv
SHORT = (
    *("top1", "top1_stderr", "drop", "parameters", "memory_mb", "memory_saving_percent"),
    *("macs", "sops", "energy_mj", "firing_rate_percent", "latency_ms", "throughput"),
)
# a table's rows may hold these in other units
_PERCENT = ("memory_saving", "firing_rate", "silent_channels")
# columns of a page that is no terminal
WIDE = 108


def final_table(run: RunFiles) -> pd.DataFrame:
    """One row per network, in the order of the results: ``network`` and the columns ``COLUMNS``.

    Accuracies are percent on the test set (the validation set where a run leaves that alone),
    ``drop`` is points below the row named "base", memory saving is percent of the base network's
    parameters; ``docs/measures.md`` says what the others are. What was not measured, or not
    published, is NaN.
    """
    base = run.row("base")
    rows = []
    for row in run.results["rows"]:
        timing = run.results.get("timing", {}).get(row["name"], {})
        published = row.get("published") or {}
        figures = {
            **row,
            **timing,
            "drop": None if base is None else base["top1"] - row["top1"],
            **{f"{name}_percent": _percent(row.get(name)) for name in _PERCENT},
            "published_top1": published.get("top1"),
            "published_drop": published.get("drop"),
            "published_memory_saving_percent": _percent(published.get("memory_saving")),
        }
        rows.append({"network": row["name"], **{name: figures.get(name) for name in COLUMNS}})
    table = pd.DataFrame(rows, columns=["network", *COLUMNS])
    return table.astype({column: float for column in COLUMNS if column != "parameters"})


def caption(run: RunFiles, names: Iterable[str] = tuple(COLUMNS)) -> str:
    """The conventions that the table's figures follow, in one paragraph.

    Args:
        run: what is told of.
        names: the table's columns.
    """
    shown = measured(run, names)
    about = run.results.get("run", {})
    images = {row.get("images") for row in run.results["rows"]} - {None}
    counted = f" ({', '.join(f'{n:,}' for n in sorted(images))} images)" if images else ""
    parts = [
        " · ".join(
            f"{key} {about[key]}" for key in ("model", "dataset", "pruning", "seed") if key in about
        )
        + ".",
        f"Measured here: top-1 on the {about.get('split', 'test')} set{counted} with its binomial "
        "standard error; drop in points below the base network of this run; memory saving = 1 − "
        "parameters / base parameters.",
    ]
    if "memory_mb" in shown:
        parts.append("Memory: float32 weights and buffers, 1 MB = 10⁶ bytes.")
    if "macs" in shown:
        parts.append(_work(run))
    if "latency_ms" in shown:
        parts.append(_times(run))
    dead = [row["name"] for row in run.results["rows"] if row.get("silent")]
    if dead:
        parts.append(f"Silent, and so no saving: {', '.join(dead)}.")
    if "published_top1" in shown:
        parts.append(
            "Published: PSViT (arXiv 2606.03257) on ImageNet-1K, quoted; not run here, and not "
            "comparable with another dataset or network."
        )
    return " ".join(part for part in parts if part != ".")


def _work(run: RunFiles) -> str:
    """How operations and energy were counted."""
    options = run.config.get("measure", {})
    # a smaller set has fewer than were asked for
    there = [row["images"] for row in run.results["rows"] if row.get("images")]
    images = min([options["images"], *there]) if options.get("images") else "some"
    text = (
        "Operations of one image, over all time steps: MACs dense; SOPs = MACs × firing rate, on "
        f"{images} {run.results.get('run', {}).get('split', 'test')} images."
    )
    if {"mac_pj", "ac_pj"} <= options.keys():
        text += (
            f" Energy: {options['mac_pj']:g} pJ a MAC where the input is not spikes, "
            f"{options['ac_pj']:g} pJ a SOP elsewhere."
        )
    return text


def _times(run: RunFiles) -> str:
    """How latency and throughput were measured."""
    timing = next(iter(run.results["timing"].values()))
    return (
        f"Latency: median, batch {timing['latency_batch_size']}, images/s at batch "
        f"{timing['throughput_batch_size']}, {timing['threads']} thread(s), {timing['device']}; "
        "all networks in turn."
    )


def markdown(run: RunFiles) -> str:
    """The table, a part for each group of columns, and its caption as Markdown."""
    lines = []
    for names in GROUPS.values():
        heading, *rows = cells(run, measured(run, names))
        if len(heading) > 1:
            rule = ["---"] + ["---:"] * (len(heading) - 1)
            lines += ["| " + " | ".join(row) + " |" for row in (heading, rule, *rows)] + [""]
    return "\n".join([*lines, caption(run), ""])


def measured(run: RunFiles, names: Iterable[str]) -> list[str]:
    """Those of the columns that hold a figure, and one of their own."""
    table = final_table(run)
    shown = [name for name in names if table[name].notna().any()]
    # no layer reads integers
    if table["energy_integer_macs_mj"].equals(table["energy_mj"]):
        shown = [name for name in shown if name != "energy_integer_macs_mj"]
    return shown


def cells(run: RunFiles, names: Iterable[str]) -> list[list[str]]:
    """The heading, then every row, as the text that a reader sees."""
    names = list(names)
    lines = [["network", *(COLUMNS[name].heading for name in names)]]
    silent = {row["name"] for row in run.results["rows"] if row.get("silent")}
    for row in final_table(run).to_dict("records"):
        dead = row["network"] in silent
        lines.append([row["network"], *(COLUMNS[name].text(row[name]) for name in names)])
        if dead:
            lines[-1][1:] = [
                SILENT if name in OF_SPIKES else cell
                for name, cell in zip(names, lines[-1][1:], strict=True)
            ]
    return lines


def print_table(run: RunFiles, console: Console | None = None) -> None:
    """Draw the table in the terminal; plain aligned lines when the output is not a terminal.

    Groups of columns stand side by side where there is room, else one below another.
    """
    console = console or Console()
    groups = [
        measured(run, [name for name in names if name in SHORT or group == "published"])
        for group, names in GROUPS.items()
    ]
    width = console.width if console.is_terminal else WIDE
    for names in _side_by_side(run, [group for group in groups if group], width):
        heading, *rows = cells(run, names)
        if not console.is_terminal:
            console.file.write(_plain(heading, rows) + "\n\n")
            continue
        table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1))
        for index, (title, name) in enumerate(zip(heading, ["network", *names], strict=True)):
            table.add_column(
                title.replace(" ", "\n"),
                justify="right" if index else "left",
                vertical="top",
                no_wrap=bool(index),
                style="dim" if name.startswith("published") else None,
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if console.is_terminal:
        console.print(caption(run), style="dim", highlight=False)
    else:
        console.file.write(caption(run) + "\n")


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 10)


def _side_by_side(run: RunFiles, groups: list[list[str]], width: int) -> list[list[str]]:
    """Groups of columns, joined where they fit into so many columns of text."""
    joined: list[list[str]] = []
    for group in groups:
        if joined and _width(run, [*joined[-1], *group]) <= width:
            joined[-1] = [*joined[-1], *group]
        else:
            joined.append(group)
    return joined


def _width(run: RunFiles, names: list[str]) -> int:
    """Columns of text that a terminal needs, with a word of a heading in each line."""
    heading, *rows = cells(run, names)
    lines = [[max(title.split(), key=len) for title in heading], *rows]
    # rich puts three spaces between columns, and two at either side
    return 3 * len(heading) + sum(map(max, zip(*[map(len, line) for line in lines], strict=True)))


def _plain(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
