"""The final table of a run: as data, Markdown, CSV, and in the terminal."""

import math
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from psvit.report.files import RunFiles

# column -> (heading, format). A measured and a published figure never share a column.
COLUMNS = {
    "network": ("network", "{}"),
    "top1": ("top-1 %", "{:.2f}"),
    "top1_stderr": ("± s.e.", "{:.2f}"),
    "drop": ("drop (points)", "{:.2f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "memory_mb": ("memory MB", "{:.3f}"),
    "memory_saving_percent": ("memory saving %", "{:.1f}"),
    "published_top1": ("published top-1 %", "{:.1f}"),
    "published_drop": ("published drop (points)", "{:.1f}"),
    "published_memory_saving_percent": ("published memory saving %", "{:.1f}"),
}
ABSENT = "–"
# columns of a terminal that hold the measured and the published figures side by side
WIDE = 108


def final_table(run: RunFiles) -> pd.DataFrame:
    """One row per network, in the order of the results, with the columns of ``COLUMNS``.

    Accuracies are percent on the test set (the validation set where a run leaves that alone),
    ``drop`` is points below the row named "base", memory saving is percent of the base network's
    parameters. What was not measured, or not published, is NaN.
    """
    base = run.row("base")
    rows = []
    for row in run.results["rows"]:
        published = row.get("published") or {}
        rows.append(
            {
                "network": row["name"],
                "top1": row["top1"],
                "top1_stderr": row.get("top1_stderr"),
                "drop": None if base is None else base["top1"] - row["top1"],
                "parameters": row["parameters"],
                "memory_mb": row["memory_mb"],
                "memory_saving_percent": _percent(row["memory_saving"]),
                "published_top1": published.get("top1"),
                "published_drop": published.get("drop"),
                "published_memory_saving_percent": _percent(published.get("memory_saving")),
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = [column for column in COLUMNS if column not in ("network", "parameters")]
    return table.astype({column: float for column in numbers})


def caption(run: RunFiles) -> str:
    """The conventions that the table's figures follow, in one paragraph."""
    about = run.results.get("run", {})
    images = {row.get("images") for row in run.results["rows"]} - {None}
    counted = f" ({', '.join(f'{n:,}' for n in sorted(images))} images)" if images else ""
    parts = [
        " · ".join(
            f"{key} {about[key]}" for key in ("model", "dataset", "pruning", "seed") if key in about
        )
        + ".",
        f"Measured here: top-1 on the {about.get('split', 'test')} set{counted} with its binomial "
        "standard error; drop in points below the base network of this run; memory of the float32 "
        "weights and buffers, 1 MB = 10⁶ bytes; memory saving = 1 − parameters / base parameters.",
    ]
    if any(row.get("published") for row in run.results["rows"]):
        parts.append(
            "Published: PSViT (arXiv 2606.03257) on ImageNet-1K, quoted; not run here, and not "
            "comparable with another dataset or network."
        )
    return " ".join(part for part in parts if part != ".")


def markdown(run: RunFiles) -> str:
    """The table and its caption as Markdown."""
    heading, *rows = _cells(final_table(run))
    rule = ["---"] + ["---:"] * (len(heading) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows)]
    return "\n".join([*lines, "", caption(run), ""])


def print_table(run: RunFiles, console: Console | None = None) -> None:
    """Draw the table in the terminal; plain aligned lines when the output is not a terminal.

    In a narrow terminal the published figures come below the measured ones.
    """
    console = console or Console()
    heading, *rows = _cells(final_table(run))
    if not console.is_terminal:
        console.file.write(_plain(heading, rows) + "\n" + caption(run) + "\n")
        return
    published = next(i for i, name in enumerate(heading) if name.startswith("published"))
    parts = [[*range(len(heading))]]
    if console.width < WIDE:
        parts = [[*range(published)], [0, *range(published, len(heading))]]
    for part in parts:
        table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1))
        for index in part:
            table.add_column(
                heading[index].replace(" ", "\n"),
                justify="right" if index else "left",
                vertical="top",
                no_wrap=bool(index),
                style="dim" if index >= published else None,
            )
        for cells in rows:
            table.add_row(*(cells[index] for index in part))
        console.print(table)
    console.print(caption(run), style="dim", highlight=False)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 10)


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """The heading, then every row, as the text that a reader sees."""
    lines = [[heading for heading, _ in COLUMNS.values()]]
    for row in table.to_dict("records"):
        lines.append([_cell(row[column], layout) for column, (_, layout) in COLUMNS.items()])
    return lines


def _cell(value: Any, layout: str) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return ABSENT
    text = layout.format(value)
    # a drop that rounds to nothing has no sign
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


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
