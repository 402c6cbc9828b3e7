import json
import math
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from psvit.report.table import final_table, markdown, print_table

PUBLISHED = ["published_top1", "published_drop", "published_memory_saving_percent"]


def changed(run, change):
    """The run with its results edited by ``change``."""
    results = json.loads(json.dumps(run.results))
    change(results)
    return replace(run, results=results)


def row(name, top1, stderr=0.8, parameters=100_000, memory_mb=0.4, saving=0.0, published=None):
    return {
        "name": name,
        "top1": top1,
        "top1_stderr": stderr,
        "loss": 0.1,
        "images": 400,
        "parameters": parameters,
        "memory_mb": memory_mb,
        "memory_saving": saving,
        "published": published,
    }


def test_numbers_against_hand_computed_ones(run):
    rows = [
        row("base", 97.5),
        row(
            "fine_grained",
            94.25,
            parameters=77_600,
            memory_mb=0.3104,
            saving=0.224,
            published={"top1": 70.3, "drop": 3.0, "memory_saving": 0.224},
        ),
        row("fine_grained + fine-tuning", 97.75, parameters=77_600, saving=0.224),
    ]
    table = final_table(changed(run, lambda r: r.update(rows=rows))).set_index("network")
    assert table["drop"].tolist() == [0.0, 3.25, -0.25]
    assert table["memory_saving_percent"].tolist() == [0.0, 22.4, 22.4]
    assert table["parameters"].tolist() == [100_000, 77_600, 77_600]
    assert table.loc["fine_grained", PUBLISHED].tolist() == [70.3, 3.0, 22.4]
    assert table.loc["fine_grained + fine-tuning", PUBLISHED].isna().all()


def test_markdown_shows_every_figure_with_its_convention(folder):
    text = (folder / "table.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:6]]
    assert lines[2][:7] == ["base", "97.50", "0.82", "0.00", "15,112,208", "60.751", "0.0"]
    assert lines[3] == [
        "uniform",
        "88.50",
        "0.82",
        "9.00",
        "11,696,849",
        "47.021",
        "22.6",
        "–",
        "–",
        "–",
    ]
    assert lines[4][7:] == ["70.3", "3.0", "22.4"]
    assert [name for name in lines[0] if name.startswith("published")] == lines[0][7:]
    for convention in ("test set", "360 images", "1 MB = 10⁶ bytes", "ImageNet-1K", "not run here"):
        assert convention in text


def test_csv_gives_back_the_same_numbers(folder, run):
    read = pd.read_csv(folder / "table.csv")
    pd.testing.assert_frame_equal(read, final_table(run), check_exact=True, check_dtype=False)


def test_published_figures_touch_no_measured_column(run):
    def republish(results):
        for entry in results["rows"]:
            entry["published"] = {"top1": 11.0, "drop": 22.0, "memory_saving": 0.33}

    def withdraw(results):
        for entry in results["rows"]:
            entry["published"] = None

    measured = final_table(run).drop(columns=PUBLISHED)
    for change in (republish, withdraw):
        table = final_table(changed(run, change))
        pd.testing.assert_frame_equal(table.drop(columns=PUBLISHED), measured)
    assert table[PUBLISHED].isna().all(axis=None)
    assert "ImageNet" not in markdown(changed(run, withdraw))


def test_without_a_base_row_there_is_no_drop(run):
    table = final_table(changed(run, lambda r: r["rows"].pop(0)))
    assert table["drop"].isna().all()


@pytest.mark.parametrize(
    ("drop", "shown"), [(-0.25, "−0.25"), (-0.001, "0.00"), (3.0, "3.00"), (math.nan, "–")]
)
def test_sign_of_a_drop(run, drop, shown):
    rows = [row("base", 90.0), row("pruned", 90.0 - drop, stderr=None)]
    cells = markdown(changed(run, lambda r: r.update(rows=rows))).splitlines()[3].split("|")
    assert cells[4].strip() == shown
    assert cells[3].strip() == "–"


@pytest.mark.parametrize("width", [80, 100, 130])
def test_no_figure_is_cut_off_in_a_terminal(run, width):
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(run, console)
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for figure in ("97.50", "15,112,208", "60.751", "22.6", "72.8", "22.4"):
        assert figure in text


def test_plain_lines_when_not_a_terminal(run):
    console = Console(file=StringIO(), width=40)
    print_table(run, console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 6 and "\x1b" not in "".join(lines)
    assert lines[1].split() == [
        "base",
        "97.50",
        "0.82",
        "0.00",
        "15,112,208",
        "60.751",
        "0.0",
        "73.3",
        "0.0",
        "0.0",
    ]
