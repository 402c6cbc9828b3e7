"""Makes the W&B report of a project once; from then on it follows the project's runs.

    pip install wandb-workspaces
    python experiments/wandb/report.py ENTITY/PROJECT

It needs an account, and runs that were logged or synced. docs/wandb.md says what its panels show.
"""

import argparse

import wandb_workspaces.reports.v2 as wr

TITLE = "Structured pruning of spiking transformers"
COLUMNS = {
    "final/top1": "test top-1 of the last network",
    "final/drop": "points lost",
    "final/memory_saving": "memory saved",
    "pruned/top1": "before fine-tuning",
    "uniform/top1": "one ratio everywhere, same saving",
    "unpruned/top1": "base network",
}


def layout(entity: str, project: str) -> wr.Report:
    """The report, not yet saved."""
    runs = wr.Runset(
        entity=entity,
        project=project,
        name="Runs",
        groupby=["JobType"],
        order=[wr.OrderBy(wr.SummaryMetric("final/top1"), ascending=False)],
    )
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE,
        width="fluid",
        blocks=[
            wr.TableOfContents(),
            wr.H1("Accuracy against memory"),
            wr.P("A point is a run: test top-1 after the last step, against the memory saved."),
            wr.PanelGrid(runsets=[runs], panels=_results()),
            wr.H1("Trainings"),
            wr.P("Validation top-1 and loss by epoch: the base network, then fine-tuning."),
            wr.PanelGrid(runsets=[runs], panels=_curves()),
            wr.H1("Sensitivity, plan, operations"),
            wr.P("The tables of each run. Every row is also a file of the run's folder."),
            wr.PanelGrid(runsets=[runs], panels=_tables()),
            wr.H1("Firing"),
            wr.P("A network that has gone silent saves nothing: firing/dead is 1."),
            wr.PanelGrid(runsets=[runs], panels=_firing()),
        ],
    )


def _results() -> list:
    saving = wr.SummaryMetric("final/memory_saving")
    return [
        wr.ScatterPlot(x=saving, y=wr.SummaryMetric("final/top1"), title="After fine-tuning"),
        wr.ScatterPlot(x=saving, y=wr.SummaryMetric("pruned/top1"), title="As it was cut"),
        wr.ParallelCoordinatesPlot(
            title="Runs side by side",
            columns=[
                wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key), display_name=said)
                for key, said in COLUMNS.items()
            ],
        ),
        wr.BarPlot(title="Points lost", metrics=["final/drop", "pruned/drop", "uniform/drop"]),
    ]


def _curves() -> list:
    return [
        wr.LinePlot(x="epoch", y=[f"{stage}/{name}"], title=f"{stage}: {name}")
        for stage in ("base", "finetune")
        for name in ("val_top1", "val_loss")
    ]


def _tables() -> list:
    names = ("sensitivity/table", "plan/table", "operations/table", "final/table")
    figures = ["figures/sensitivity_map", "figures/architecture", "figures/operations"]
    return [
        *(wr.WeavePanelSummaryTable(table_name=name) for name in names),
        wr.MediaBrowser(title="Figures", media_keys=figures),
    ]


def _firing() -> list:
    metrics = ["firing/rate_base", "firing/rate", "firing/silent", "firing/saturated"]
    return [wr.BarPlot(title=metric, metrics=[metric]) for metric in metrics]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", help="ENTITY/PROJECT")
    entity, _, project = parser.parse_args().project.partition("/")
    if not project:
        parser.error(f"{entity}: expected ENTITY/PROJECT")
    report = layout(entity, project).save()
    print(report.url)


if __name__ == "__main__":
    main()
