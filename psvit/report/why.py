"""``plan.md``: the page of why. What the policy cut from each group, and what it expected of it."""

import pandas as pd

from psvit.files import write_text
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
MEASURES = {"loss": "increase of the cross-entropy", "kl": "divergence from the base network"}
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
    target, pruning = run.results.get("target_memory_saving"), run.config.get("pruning", {})
    asked = [] if target is None else [f"a memory saving of {100 * target:g} %"]
    drop = pruning.get("max_accuracy_drop")
    if drop is not None:
        asked.append(f"at most {drop:g} points of validation top-1 lost")
    reached = next(
        (
            r
            for r in run.results["rows"]
            if r.get("stage") == "pruned" and r.get("policy") == about.get("pruning")
        ),
        None,
    )
    if asked:
        lines.append(f"Asked for: {', '.join(asked)}.")
    if reached is not None:
        lines.append(f"Reached: {100 * reached['memory_saving']:.2f} % of the parameters.")
    found = run.results.get("prediction")
    if found:
        lines.append(
            f"Predicted cost: {found['predicted']:.4f} nats ({MEASURES[found['measure']]}), as if "
            f"the groups did not interact; measured on the cut network: {found['measured']:.4f}."
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
