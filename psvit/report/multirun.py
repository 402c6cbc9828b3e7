"""Compares the jobs of a multirun when it ends: ``hydra.callbacks`` calls it."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from psvit.files import write_text, write_whole
from psvit.report.comparison import comparison_table, read_runs
from psvit.report.comparison_text import markdown, print_headline
from psvit.report.multirun_page import write_multirun_page
from psvit.report.pareto import write_pareto

_log = logging.getLogger(__name__)


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
    write_whole(out / "runs.csv", lambda path: long.to_csv(path, index=False))
    write_whole(out / "comparison.csv", lambda path: table.to_csv(path, index=False))
    write_text(out / "comparison.md", markdown(table, long))
    write_pareto(table, out / "figures")
    write_multirun_page(table, long, out)
    print_headline(table, long)


class Comparison(Callback):
    """Hydra's callback: a multirun's folder gets the comparison of its jobs."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the jobs; whatever fails is one line and never the multirun."""
        try:
            folder = Path(config.hydra.sweep.dir)
            write_comparison([folder], folder)
            print(f"comparison: {folder / 'comparison.md'}")
        except Exception as error:  # the jobs' results are on disk
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.warning("the jobs of this multirun are not compared: %s", reason)
