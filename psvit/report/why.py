"""``plan.md``: the page of why. What the policy cut from each group, and what it expected of it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from psvit.files import write_text
from psvit.report.diagnostics import MEASURES, prediction
from psvit.report.files import RunFiles, read_table

POLICIES = {
    "uniform": "Uniform (PSViT, step 1): the same ratio everywhere.",
    "fine_grained": (
        "Fine-grained (PSViT, step 3): a uniform ratio on the large groups, then further cuts "
        "where the measured sensitivity predicts the least loss for what they save."
    ),
    "prioritized": (
        "Prioritized (PrimeSVT): the largest groups first, each by the largest ratio that keeps "
        "the accuracy; plan_log.csv holds every candidate."
    ),
    "budgeted": (
        "Budgeted (ours): of all choices of ratios that save enough, the one with the smallest "
        "predicted divergence from the base network's outputs; plan_log.csv holds every step."
    ),
    "global": "Global: one threshold of importance for all groups.",
}
# of the budget's resources: what a row of the results counts of them, and their names in a sentence
COUNTS = {"macs": "macs", "synops": "sops"}
NEEDS = {"macs": "the MACs", "synops": "the spike operations"}
# predicted_cost is empty where the policy predicts none
COLUMNS = ["round", "group", "size", "removed", "ratio", "parameters_saved"]


def write_why(run: RunFiles) -> None:
    """Write ``plan.md`` from ``plan.csv`` and ``results.json``; nothing where there is no plan."""
    table = read_table(run.folder / "plan.csv", COLUMNS)
    if table is not None:
        write_text(run.folder / "plan.md", markdown(run, table))


def markdown(run: RunFiles, table: pd.DataFrame) -> str:
    """The page: the policy, what was asked and reached, and a row for each group.

    Args:
        run: the run's files.
        table: the rows of ``plan.csv``, in the network's order.
    """
    about = run.results.get("run", {})
    lines = ["# Why this plan", "", POLICIES.get(about.get("pruning"), ""), ""]
    asked, resources = _asked(run), _resources(run)
    if asked:
        lines.append(f"Asked for: {', '.join(asked)}.")
    cut = [
        row
        for row in run.results["rows"]
        if row.get("stage") == "pruned" and row.get("policy") == about.get("pruning")
    ]
    if cut:
        # of several rounds the last one's
        lines.append(f"Reached: {', '.join(_reached(run.row('base'), cut[-1], resources))}.")
    found = prediction(run)
    if found is not None:
        record = run.results["prediction"]
        where = "behind recovery" if record.get("of") == "recovered" else "on the cut network"
        last = " of the last round" if table["round"].nunique() > 1 else ""
        lines.append(
            f"Predicted cost{last}: {found[0]:.3g} nats ({MEASURES[record['measure']]}), as if the "
            f"groups did not interact; measured {where}: {found[1]:.3g}."
        )
    lines += [
        "",
        "Parameters saved are those that the group's cut alone saves: groups that share a layer "
        "save less together.",
        "",
    ]
    for number, rows in table.groupby("round"):
        if table["round"].nunique() > 1:
            lines += [f"## Round {number}", ""]
        lines += [
            "| group | channels | removed | ratio | predicted cost (nats) | parameters saved |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in rows.itertuples():
            cost = "–" if pd.isna(row.predicted_cost) else f"{row.predicted_cost:.4f}"
            lines.append(
                f"| {row.group} | {row.size} | {row.removed} | {row.ratio:.2f} | {cost} | "
                f"{row.parameters_saved:,} |"
            )
        lines.append("")
    return "\n".join(lines)


def _resources(run: RunFiles) -> list[str]:
    """What the budget names besides memory."""
    budget = run.config.get("pruning", {}).get("budget") or []
    return [name for name in ([budget] if isinstance(budget, str) else budget) if name != "memory"]


def _asked(run: RunFiles) -> list[str]:
    """What the run was to save, and might lose."""
    pruning = run.config.get("pruning", {})
    memory, others = run.results.get("target_memory_saving"), pruning.get("target_saving")
    found = [] if memory is None else [f"a memory saving of {100 * memory:g} %"]
    for name in _resources(run):
        share = others.get(name, memory) if isinstance(others, dict) else others
        share = memory if share is None else share
        if share is not None:
            found.append(f"{100 * share:g} % of {NEEDS.get(name, name)}")
    drop = pruning.get("max_accuracy_drop")
    if drop is not None:
        found.append(f"at most {drop:g} points of validation top-1 lost")
    return found


def _reached(
    base: dict[str, Any] | None, cut: dict[str, Any], resources: Sequence[str]
) -> list[str]:
    """What the network that was cut saves of the base network's needs."""
    found = [f"{100 * cut['memory_saving']:.2f} % of the parameters"]
    for name, column in COUNTS.items():
        if name in resources and base and base.get(column) and cut.get(column) is not None:
            found.append(f"{100 * (1 - cut[column] / base[column]):.2f} % of {NEEDS[name]}")
    return found
