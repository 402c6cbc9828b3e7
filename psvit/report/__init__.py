"""Tables and figures of a run, made from the files in its folder."""

from pathlib import Path

from psvit.files import write_csv, write_text
from psvit.report.diagnostics import write_diagnostics
from psvit.report.figures import write_figures
from psvit.report.files import RunFiles, read_run
from psvit.report.page import write_page
from psvit.report.table import final_table, latex, markdown
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
