import math
from io import StringIO

import pytest
from comparison_runs import change, write_job, write_multirun
from rich.console import Console

from psvit.report.comparison import best, comparison_table, read_runs
from psvit.report.comparison_text import headline_table, markdown, print_headline


def test_one_seed_has_no_deviation(tmp_path):
    write_job(tmp_path / "0", "fine_grained", 0, {"base": 90.0, "pruned": 80.0})
    long = read_runs([tmp_path])
    table = comparison_table(long)
    assert math.isnan(table.loc[0, "drop_sd"])
    line = markdown(table, long).splitlines()[-3]
    assert "**10.00**" in line and "±" not in line


def test_the_best_of_a_target_saves_it(tmp_path):
    found = {"base": 90.0, "pruned": 80.0, "finetuned": 89.0}
    write_job(tmp_path / "0", "fine_grained", 0, found)
    # loses less, and stopped short of the target
    found = {"base": 90.0, "pruned": 88.0}
    write_job(tmp_path / "1", "prioritized", 0, found, saving=0.1, max_accuracy_drop=3.0)
    long = read_runs([tmp_path])
    table = comparison_table(long)
    winners = table[best(table)]
    assert list(zip(winners["policy"], winners["recovery"], strict=True)) == [
        ("fine_grained", "fine-tuning"),
        ("fine_grained", "none"),
    ]
    text = markdown(table, long)
    assert "2.00†" in text and "saves less than the target" in text
    bold = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(bold) == 2 and all("fine_grained" in line for line in bold)


def test_headline_has_the_published_rule_and_the_best_setting(tmp_path):
    jobs = [("l2", "none", 80.0), ("taylor", "none", 84.0), ("hessian", "none", 82.0)]
    for number, (importance, recovery, top1) in enumerate(jobs):
        for target in (0.2, 0.3):
            found = {"base": 90.0, "pruned": top1 - 20 * target, "finetuned": 89.5}
            options = {"importance": importance, "recovery": recovery, "target": target}
            folder = tmp_path / f"{number}-{target}"
            write_job(folder, "fine_grained", 0, found, saving=target, **options)
    headline = headline_table(comparison_table(read_runs([tmp_path])))
    columns = ["importance", "which", "20 %", "30 %"]
    assert headline[columns].values.tolist() == [
        ["l2", "l2, none", "14.00", "16.00"],
        ["taylor", "best", "10.00", "12.00"],
    ]


def test_a_target_that_only_other_importances_tried_is_no_empty_column(tmp_path):
    trials = [("taylor", 0.2, 88.0), ("hessian", 0.3, 80.0)]
    for importance, target, top1 in trials:
        found = {"base": 90.0, "pruned": top1}
        options = {"importance": importance, "target": target, "saving": target}
        write_job(tmp_path / importance, "fine_grained", 0, found, **options)
    long = read_runs([tmp_path])
    table = comparison_table(long)
    headline = headline_table(table)
    assert headline[["importance", "20 %"]].values.tolist() == [["taylor", "2.00"]]
    assert "30 %" not in headline
    text = markdown(table, long)
    assert "Measured with others alone, see all networks: 30 %." in text
    assert any("hessian" in line and "10.00" in line for line in text.splitlines())


def test_runs_that_prune_nothing_show_their_base_networks(tmp_path):
    for seed, top1 in enumerate((90.0, 92.0)):
        write_job(tmp_path / str(seed), "none", seed, {"base": top1})
    long = read_runs([tmp_path])
    table = comparison_table(long)
    assert table[["policy", "top1", "drop", "seeds"]].values.tolist() == [["none", 91.0, 0.0, 2]]
    assert "base network 91.00 ± 1.41 % top-1, 2 seeds" in markdown(table, long)


def test_a_silent_network_is_told(tmp_path):
    for seed in range(2):
        write_job(tmp_path / str(seed), "uniform", seed, {"base": 90.0, "pruned": 10.0})
    assert "Dead network" not in markdown(
        comparison_table(read_runs([tmp_path])), read_runs([tmp_path])
    )
    change(tmp_path / "1", lambda results: results["rows"][1].update(silent=True))
    long = read_runs([tmp_path])
    (line,) = [
        line for line in markdown(comparison_table(long), long).splitlines() if "Dead" in line
    ]
    assert "not a saving: uniform, recovery none (seed=1)" in line


def test_what_only_a_failed_job_was_to_do_is_no_setting_of_the_others(tmp_path):
    write_job(tmp_path / "0", "fine_grained", 0, {"base": 90.0, "pruned": 80.0}, round_to=1)
    write_job(tmp_path / "1", "fine_grained", 1, None, round_to=8)
    table = comparison_table(read_runs([tmp_path]))
    assert table["settings"].tolist() == ["", ""]
    assert table["status"].tolist() == ["done", "failed"]


def test_every_job_failed(tmp_path):
    write_job(tmp_path / "0", "uniform", 0, None)
    long = read_runs([tmp_path])
    text = markdown(comparison_table(long), long)
    assert (
        "No network was measured." in text
        and "logger=none pruning=uniform seed=0 (no results)" in text
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_the_headline_is_printed_whole(tmp_path, terminal):
    long = read_runs([write_multirun(tmp_path / "multirun")])
    console = Console(
        file=StringIO(), width=100, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    print_headline(comparison_table(long), long, console)
    text = console.file.getvalue()
    for figure in ("12.00 ± 2.00", "5.00 ± 1.41", "3.00 ± 1.00", "1.00 ± 0.00", "seed=2"):
        assert figure in text
    assert "…" not in text
