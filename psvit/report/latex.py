"""``table.tex``: what a paper shows of a run's table."""

import re

import pandas as pd

from psvit.report.files import RunFiles
from psvit.report.table import caption, cells, measured

# what fits into 397 pt: a page of one column, or both columns of a page of two
COLUMNS = (
    *("top1", "top1_stderr", "drop", "parameters", "memory_saving_percent"),
    *("macs", "sops", "energy_mj", "firing_rate_percent"),
)
SIGNS = {
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "⁶": "$^6$"},
    "·": r"$\cdot$",
}


def latex(run: RunFiles) -> str:
    """The measured figures as a table for LaTeX's package booktabs."""
    heading, *rows = [[_tex(cell) for cell in row] for row in cells(run, measured(run, COLUMNS))]
    stacked = [_stacked(title) for title in heading[1:]]
    text = pd.DataFrame(rows, columns=[heading[0], *stacked]).to_latex(
        index=False,
        column_format="l" + "r" * len(stacked),
        caption=_tex(caption(run, COLUMNS)),
        label="tab:psvit",
        position="t",
    )
    text = text.replace("{table}", "{table*}")
    small = r"\centering\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{6pt}"
    text = text.replace(r"\caption", f"{small}\n\\caption", 1)
    return "% \\usepackage{booktabs}\n" + text


def _stacked(title: str) -> str:
    """A word in each line, all lines of one height."""
    lines = r"\\".join(rf"\strut {word}" for word in title.split())
    return rf"\shortstack[r]{{{lines}}}"


def _tex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    text = re.sub("([_%&#$])", r"\\\1", text)
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    return text
