"""The comparison of many runs for a reader: Markdown, and the headline in the terminal."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psvit.report.comparison import BASES, POLICIES, best, without_training
from psvit.report.costs import cost_cells
from psvit.report.job_rows import DONE
from psvit.report.jobs import NONE, UNPRUNED
from psvit.report.table import ABSENT

# the papers whose rule a policy is
RULES = {"fine_grained": "PSViT", "prioritized": "PrimeSVT"}
VARIANT = ["importance", "recovery", "rounds", "settings"]
COLUMNS = ["model", "dataset", "target", "policy", "importance", "recovery", "rounds"]
# left out where it is the same in all rows
VARIED = ("model", "dataset", "rounds")
# importance and recovery of the published rules
PLAIN = ("l2", NONE)
SHORT = "†"
ABOUT_COSTS = (
    "Means over the seeds; operations and energy of one image over all time steps, memory of "
    "float32 weights and buffers. Latency is of the smallest batch that was timed, images/s of the "
    "largest; each run timed its networks in turn, so that the speed-up over its base network "
    "holds where jobs ran side by side, and milliseconds do not."
)
CONVENTIONS = (
    "Measured here: top-1 on the test set (where the dataset's name says validation, on that set), "
    "mean ± sample standard deviation over the seeds; drop "
    "in points below the base network of the same seed; memory saving = 1 − parameters / base "
    "parameters. Recovery none: the network as it was cut. The policy fine_grained is PSViT's rule "
    "as we read it (arXiv 2606.03257), prioritized is PrimeSVT's (arXiv 2606.03428), each with "
    "importance l2 and no recovery, fine-tuned or not; any other row is not theirs."
)


def headline_table(table: pd.DataFrame) -> pd.DataFrame:
    """Drops without training: each policy with l2 and no recovery, and with what serves it best,
    apart for each base network.

    What serves a policy best reaches the most targets, and then has the lowest drop in the mean of
    the targets. It is told by the figures shown, so its figure flatters it a little.

    Returns:
        Text: columns model, dataset, policy, importance, recovery, rounds, settings, which ("l2,
        none", "best" or both), and one for each target: ``mean ± deviation`` in points, marked
        where the network saves less than the target. Targets that none of these was measured at
        are left out: ``attrs["left_out"]``.
    """
    rows = table[(table["status"] == DONE) & ~table["policy"].isin(UNPRUNED)]
    rows = rows[without_training(rows) & rows["drop"].notna()]
    targets = list(dict.fromkeys(rows["target"]))
    lines = []
    for _, network in rows.groupby(BASES, sort=False):
        for policy in sorted(set(network["policy"]), key=_place):
            for variant, which in _shown(network[network["policy"] == policy]):
                cells = {row.target: _drop(row) for row in variant.itertuples()}
                said = variant.iloc[0][["model", "dataset", "policy", *VARIANT]].to_dict()
                line = {**said, "which": which}
                lines.append(line | {target: cells.get(target, ABSENT) for target in targets})
    # a search may have tried a target with other importances or recoveries alone
    shown = [name for name in targets if any(line[name] != ABSENT for line in lines)]
    columns = ["model", "dataset", "policy", *VARIANT, "which", *shown]
    found = pd.DataFrame(lines, columns=columns)
    found.attrs["left_out"] = [name for name in targets if name not in shown]
    return found


def markdown(table: pd.DataFrame, long: pd.DataFrame) -> str:
    """The headline, the whole table, and what their figures mean."""
    headline = headline_table(table)
    parts = ["# Comparison", base_networks(long), *silent_networks(long)]
    if len(headline):
        parts += ["## Drop without fine-tuning (points)", _pipes(*_headline_cells(headline))]
        parts.append(_about(headline))
    parts += ["## All networks", _pipes(*_cells(table))]
    heading, rows = cost_cells(table, long, _names(table))
    if rows:
        parts += ["## What they take", _pipes(heading, rows), ABOUT_COSTS]
    parts.append(caption(table))
    return "\n\n".join(parts) + "\n"


def base_networks(long: pd.DataFrame) -> str:
    """The base networks that the drops are counted from: a line for each model and dataset, and
    for each of several that were made differently."""
    lines = []
    done = long[(long["status"] == DONE) & long["base_top1"].notna()]
    for (model, dataset, made), rows in done.groupby(BASES, sort=False):
        top1 = rows.groupby("seed", dropna=False)["base_top1"].mean()
        which = ", ".join(filter(None, [f"{model} on {dataset}", made]))
        mean = _number(top1.mean(), top1.std(), "{:.2f}")
        lines.append(f"{which}: base network {mean} % top-1, {_count(len(top1), 'seed')}.")
    return "\n".join(lines) or "No network was measured."


def caption(table: pd.DataFrame) -> str:
    """The conventions of the whole table, in one paragraph."""
    parts = [
        CONVENTIONS,
        "Bold: the lowest mean drop of a base network's target, among the networks that were not "
        "trained after they were cut and among those that were; only networks that save their "
        "target are in it. "
        "A difference well within the deviations is none.",
    ]
    if table["settings"].str.contains("planned for recovery", regex=False).any():
        parts.append(
            "Planned for a recovery: the network before it, cut by a plan that counts on it."
        )
    rest = table[table["status"] != DONE]["status"].value_counts()
    if len(rest):
        counts = " and ".join(f"{_count(n, f'{status} job')}" for status, n in rest.items())
        parts.append(
            f"{counts[0].upper()}{counts[1:]}, or still running: no mean counts the networks that "
            "are missing."
        )
    return " ".join(parts)


def silent_networks(long: pd.DataFrame) -> list[str]:
    """A line for each network that fired no spike: whatever it seems to save is no saving."""
    seen = "fired no spike on the images measured.**"
    dead: dict[str, pd.DataFrame] = {
        name: long[long[name].eq(True)] for name in ("base_silent", "silent") if name in long
    }
    bases = dead.get("base_silent", long[:0]).drop_duplicates("job")
    return [f"**Dead base network ({row.job}): it {seen}" for row in bases.itertuples()] + [
        f"**Dead network, not a saving: {row.policy}, recovery {row.recovery} ({row.job}) {seen}"
        for row in dead.get("silent", long[:0]).itertuples()
    ]


def print_headline(table: pd.DataFrame, long: pd.DataFrame, console: Console | None = None) -> None:
    """Print the base networks, the headline and what is missing; plain lines if no terminal."""
    console = console or Console()
    for line in (base_networks(long), *silent_networks(long)):
        console.print(line.strip("*"), highlight=False, markup=False, soft_wrap=True)
    headline = headline_table(table)
    if len(headline):
        heading, rows = _headline_cells(headline)
        if console.is_terminal:
            drawn = Table(*heading, box=SIMPLE_HEAD, header_style="bold", padding=(0, 1))
            for row in rows:
                drawn.add_row(*(escape(cell.strip("*")) for cell in row))
            console.print(drawn)
        else:
            console.file.write(_pipes(heading, rows) + "\n")
        console.print("Drop in points. " + _about(headline), style="dim", highlight=False)
    for row in table[table["status"] != DONE].itertuples():
        console.print(f"{row.status}: {row.job}", highlight=False, markup=False, soft_wrap=True)


def _shown(rows: pd.DataFrame) -> Iterable[tuple[pd.DataFrame, str]]:
    """A policy's variants with l2 and no recovery, and its best one."""
    variants = [variant for _, variant in rows.groupby(VARIANT, sort=False)]
    # as published first
    variants.sort(key=lambda rows: tuple(rows.iloc[0][["importance", "recovery"]]) != PLAIN)
    chosen = min(range(len(variants)), key=lambda i: _rank(variants[i]))
    for index, variant in enumerate(variants):
        first = variant.iloc[0]
        which = []
        if (first["importance"], first["recovery"]) == PLAIN:
            which.append("l2, none")
        if index == chosen:
            which.append("best")
        if which:
            yield variant, " = ".join(which)


def _rank(variant: pd.DataFrame) -> tuple[int, float]:
    return -int((~_short(variant)).sum()), variant["drop"].mean()


def _short(rows: pd.DataFrame) -> pd.Series:
    return rows["memory_saving_min"] < rows["target_value"] - 1e-9


def _drop(row: Any) -> str:
    text = _number(row.drop, row.drop_sd, "{:.2f}")
    return text + (SHORT if row.memory_saving_min < row.target_value - 1e-9 else "")


def _place(policy: str) -> tuple[int, str]:
    return POLICIES.index(policy) if policy in POLICIES else len(POLICIES), policy


def _about(headline: pd.DataFrame) -> str:
    text = (
        "Best: for each policy, the importance and recovery with the lowest mean drop, among "
        "those that met the most targets. It is selected on these same numbers, so it looks "
        "slightly better than it is."
    )
    if headline.attrs["left_out"]:
        left_out = "; ".join(headline.attrs["left_out"])
        text += f" Measured with others alone, see all networks: {left_out}."
    if headline.astype(str).apply(lambda column: column.str.endswith(SHORT)).any(axis=None):
        text += f" {SHORT} saves less than the target."
    return text


def _headline_cells(headline: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    shown = [
        name
        for name in headline.columns
        if name not in ("model", "dataset", "rounds", "settings") or headline[name].nunique() > 1
    ]
    rows = []
    for row in headline.to_dict("records"):
        cells = {name: str(row[name]) for name in shown}
        rule = RULES.get(cells["policy"])
        cells["policy"] += f" ({rule})" if rule else ""
        rows.append(list(cells.values()))
    return ["" if name == "which" else name or ABSENT for name in shown], rows


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the whole table; what is the same in all rows is left out."""
    noted = (table["settings"] != "").any() or (table["status"] != DONE).any()
    names = _names(table)
    heading = [*names, "seeds", "top-1 %", "drop (points)", "memory saving %", "parameters"]
    rows = []
    for row, winner in zip(table.to_dict("records"), best(table), strict=True):
        cells = [str(row[name]) or ABSENT for name in names]
        if row["status"] == DONE:
            cells += [
                str(row["seeds"]),
                _number(row["top1"], row["top1_sd"], "{:.2f}"),
                _number(row["drop"], row["drop_sd"], "{:.2f}"),
                _number(100 * row["memory_saving"], 100 * row["memory_saving_sd"], "{:.1f}"),
                _number(row["parameters"], math.nan, "{:,.0f}"),
            ]
        else:
            cells += [row["status"], *[ABSENT] * 4]
        if winner:
            cells = [f"**{cell}**" for cell in cells]
        rows.append(cells + ([_note(row)] if noted else []))
    return [*heading, *(["settings"] if noted else [])], rows


def _names(table: pd.DataFrame) -> list[str]:
    """The columns that say which network a row is of."""
    return [name for name in COLUMNS if name not in VARIED or table[name].nunique() > 1]


def _note(row: dict[str, Any]) -> str:
    return row["settings"] if row["status"] == DONE else row["job"]


def _number(mean: float, deviation: float, layout: str) -> str:
    """``12.34 ± 0.56``; without the deviation where there is none, as of one seed."""
    if mean is None or math.isnan(mean):
        return ABSENT
    text = layout.format(mean)
    # what rounds to nothing has no sign
    text = text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")
    return text if math.isnan(deviation) else f"{text} ± {layout.format(deviation)}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _pipes(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that is aligned as plain text too."""
    lines = [heading, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(heading))]
    lines.insert(1, ["-" * min(width, 40) for width in widths])
    # a long cell sticks out
    padded = ([c.ljust(min(w, 40)) for c, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)
