"""Tables, figures and pages of a run or of many, made from the files in their folders."""

from collections.abc import Iterable
from pathlib import Path

from psvit.files import write_csv, write_text
from psvit.report import comparison_text
from psvit.report.comparison import comparison_table, read_runs
from psvit.report.diagnostics import write_diagnostics
from psvit.report.figures import write_figures
from psvit.report.files import RunFiles, read_run
from psvit.report.latex import latex
from psvit.report.multirun_page import write_multirun_page
from psvit.report.page import write_page
from psvit.report.pareto import write_pareto
from psvit.report.table import final_table, markdown
from psvit.report.why import write_why


def write_tables(folder: str | Path) -> RunFiles:
    """Write ``table.md``, ``.csv``, ``.tex`` and, with a plan, ``plan.md`` into a run folder.

    Raises:
        UserError: the folder is not that of a run, or a file in it cannot be read.
    """
    run = read_run(folder)
    write_text(run.folder / "table.md", markdown(run))
    write_text(run.folder / "table.tex", latex(run))
    write_csv(run.folder / "table.csv", final_table(run))
    write_why(run)
    return run


def write_report(folder: str | Path) -> None:
    """Write the tables, ``figures/``, ``report.html`` and, with a plan, ``diagnostics.md`` into a
    run folder, from its files alone.

    Raises:
        UserError: the folder is not that of a run, or a file in it cannot be read.
    """
    run = write_tables(folder)
    write_figures(run)
    write_diagnostics(run)
    # last: it shows the others
    write_page(run)


def write_comparison(folders: Iterable[str | Path], out: str | Path) -> None:
    """Compare runs, and print the headline.

    Writes ``report.html``, ``comparison.md``, ``comparison.csv`` (means over seeds), ``runs.csv``
    (a row for each network) and ``figures/pareto.png`` and ``.svg`` into ``out``.

    Args:
        folders: run folders, or folders that hold some.
        out: made where it does not exist.

    Raises:
        UserError: there is no run in a folder.
    """
    out = Path(out)
    long = read_runs(folders)
    table = comparison_table(long)
    write_csv(out / "runs.csv", long)
    write_csv(out / "comparison.csv", table)
    write_text(out / "comparison.md", comparison_text.markdown(table, long))
    write_pareto(table, out / "figures")
    write_multirun_page(table, long, out)
    comparison_text.print_headline(table, long)
