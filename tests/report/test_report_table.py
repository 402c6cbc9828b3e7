import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from psvit.report.latex import latex
from psvit.report.table import final_table, markdown, print_table, three_digits

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
    measured, published = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
        for part in text.split("\n\n")[:2]
    )
    assert measured[2] == ["base", "97.50", "0.82", "0.00", "15,112,208", "60.751", "0.0"]
    assert measured[3] == ["uniform", "88.50", "0.82", "9.00", "11,696,849", "47.021", "22.6"]
    assert published[3:5] == [["uniform", "–", "–", "–"], ["fine_grained", "70.3", "3.0", "22.4"]]
    assert all(name.startswith("published") for name in published[0][1:])
    # a run of before operations were counted has no empty columns for them
    assert not any("MACs" in name for name in measured[0])
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


@pytest.mark.parametrize("width", [80, 120, 200])
def test_what_a_terminal_shows_of_all_measures(measured, width):
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(measured, console)
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for figure in ("97.50", "2.5", "1.25", "1.88", "12.35", "1,234", "silent"):
        assert figure in text
    # the rest is in the files
    assert "87.5" not in text and "12.5" in text


def test_plain_lines_when_not_a_terminal(run):
    console = Console(file=StringIO(), width=40)
    print_table(run, console)
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in "".join(lines) and max(map(len, lines[:-1])) <= 108
    assert lines[1].split() == ["base", "97.50", "0.82", "0.00", "15,112,208", "60.751", "0.0"]
    assert lines[7].split() == ["base", "73.3", "0.0", "0.0"]


@pytest.fixture
def measured(run):
    """A run whose rows hold all that is measured; the second network is dead."""
    found = {
        "top5": 99.0,
        "top5_stderr": 0.5,
        "agreement": 87.5,
        "drop_stderr": 0.61,
        "macs": 2.5e9,
        "sops": 1.25e9,
        "energy_mj": 1.875,
        "energy_integer_macs_mj": 12.5,
        "silent": False,
        "firing_rate": 0.125,
        "silent_channels": 0.03,
        "peak_activation_bytes": 1_540_000,
    }
    dead = {**found, "sops": 0, "silent": True}
    dead |= {"energy_mj": None, "energy_integer_macs_mj": None}
    timing = {
        "latency_ms": 12.345,
        "latency_batch_size": 1,
        "speedup": 1.31,
        "throughput": 1234.5,
        "throughput_batch_size": 16,
        "threads": 1,
        "device": "cpu",
    }
    rows = [{**row("base", 97.5), **found}, {**row("fine_grained", 94.25), **dead}]
    return changed(run, lambda r: r.update(rows=rows, timing={"base": timing}))


def test_work_against_hand_computed_ones(measured):
    base, dead = final_table(measured).to_dict("records")
    # as they are in the results; a reader is told in the units of the field
    assert (base["macs"], base["sops"], base["firing_rate_percent"]) == (2.5e9, 1.25e9, 12.5)
    assert base["latency_ms"] == 12.345 and math.isnan(dead["latency_ms"])
    assert dead["sops"] == 0 and math.isnan(dead["energy_mj"])
    cells = [line.split(" | ") for line in markdown(measured).split("\n\n")[1].splitlines()]
    told = dict(zip(cells[0], cells[2], strict=True))
    assert (told["MACs G"], told["SOPs G"], told["energy mJ"]) == ("2.50", "1.25", "1.88")
    assert told["firing rate %"] == "12.5" and told["activations MB"] == "1.54"
    assert (told["latency ms"], told["speed-up"]) == ("12.35", "1.31")
    assert cells[2][-1] == "1,234 |"


@pytest.mark.parametrize(("asked", "there", "told"), [(64, 37, "37"), (64, 359, "64")])
def test_the_images_of_the_spikes_are_no_more_than_there_are(measured, asked, there, told):
    few = changed(measured, lambda r: [row.update(images=there) for row in r["rows"]])
    few = replace(few, config={**few.config, "measure": {"images": asked}})
    assert f"firing rate, on {told} test images." in markdown(few)


def test_the_energy_of_integers_is_told_where_it_is_another(measured):
    def spikes_alone(results):
        for row in results["rows"]:
            row["energy_integer_macs_mj"] = row["energy_mj"]

    assert "integers as MACs" in markdown(measured)
    assert "integers as MACs" not in markdown(changed(measured, spikes_alone))


def test_a_dead_network_is_told_and_saves_nothing(measured):
    for text in (markdown(measured), latex(measured)):
        assert text.count("silent") >= 2 and "Silent, and so no saving: fine" in text
    assert "Silent, and" not in markdown(
        changed(measured, lambda r: [row.update(silent=False) for row in r["rows"]])
    )


def test_latex_has_what_a_paper_shows(measured):
    text = latex(measured)
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    heading, base, dead = ([cell.strip() for cell in line[:-2].split(" & ")] for line in lines)
    assert heading[:2] == ["network", r"\shortstack[r]{\strut top-1\\\strut \%}"]
    assert len(heading) == len(base) == len(dead) == 10 and dead[0] == r"fine\_grained"
    assert base[1] == "97.50" and "silent" in dead
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 1
    # what was published stays out, and LaTeX without extras can set every sign
    assert "73.3" not in text and "ublished" not in text and text.isascii()
    assert not re.search(r"(?<!\\)[_%]", text.replace("% ", "", 1))
    # what its columns do not show is not told of
    assert "Latency" not in text and "Latency" in markdown(measured)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_sets_the_table_within_a_page(measured, tmp_path):
    page = (
        r"\documentclass{article}\usepackage{booktabs}\usepackage[textwidth=397pt]{geometry}"
        r"\begin{document}\input{table}\end{document}"
    )
    (tmp_path / "page.tex").write_text(page)
    (tmp_path / "table.tex").write_text(latex(measured))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.015, "0.0150"), (1.5, "1.50"), (99.99, "100.0"), (1500.4, "1,500"), (0.0, "0.00")],
)
def test_three_digits(value, shown):
    assert three_digits(value) == shown
