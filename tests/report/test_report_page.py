import base64
import copy
import json
from dataclasses import replace

import pandas as pd
import pytest
import report_runs
import yaml
from html_reader import Reader

from psvit.report.files import DIAGNOSTICS_COLUMNS
from psvit.report.html import from_markdown
from psvit.report.jobs import Job
from psvit.report.page import PAGE, again, asked, page, warnings
from psvit.report.table import final_table


@pytest.fixture(scope="module")
def read(folder):
    return Reader((folder / PAGE).read_text())


def test_the_page_needs_no_other_file_and_no_script(read):
    addresses = read.values("img", "src") + read.values("a", "href")
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    assert not {"script", "link", "iframe", "object"} & set(read.tags)


def test_every_figure_of_the_run_is_inside(read, folder):
    inside = [base64.b64decode(address.partition(",")[2]) for address in read.values("img", "src")]
    figures = {path.read_bytes() for path in (folder / "figures").glob("*.svg")}
    assert len(inside) == len(figures) == 6
    assert set(inside) == figures
    assert all(read.values("img", "alt"))


def test_links_lead_to_sections_of_the_page(read):
    sections = read.values("section", "id")
    assert [address[1:] for address in read.values("a", "href")] == sections
    assert sections == ["asked", "table", "memory", "sensitivity", "plan", "operations", "again"]


def test_the_page_tells_the_table_and_the_whole_config(read, run):
    for row in final_table(run).itertuples():
        assert f"{row.network} {row.top1:.2f} {row.top1_stderr:.2f}" in read.text
    assert "target memory saving 22.4 %" in read.text
    assert "0.50 points" in read.text and "11,696,849" in read.text
    assert " ".join(yaml.safe_dump(run.config, sort_keys=False).split()) in read.text


@pytest.mark.parametrize(
    ("top1", "said"),
    [
        (103.07, "5.57 points above the base network (97.50 %)"),
        (97.504, "0.00 points below the base network"),
        (95.0, "2.50 points below the base network"),
    ],
)
def test_a_better_network_is_above_the_base_network(tmp_path, run, top1, said):
    results = report_runs.results()
    results["rows"][-1]["top1"] = top1
    read = Reader(page(replace(run, folder=tmp_path, results=results)))
    assert said in read.text


def test_a_run_without_pruning_has_a_page_without_its_sections(tmp_path, run):
    short = replace(
        run, folder=tmp_path, results=report_runs.results(("base",)), plan=None, sensitivity=None
    )
    assert Reader(page(short)).values("section", "id") == ["asked", "table", "again"]


def test_what_a_user_wrote_is_shown_and_not_run(tmp_path, run):
    results = report_runs.results(("base",))
    results["run"]["name"] = "<script>alert(1)</script>"
    results["rows"][0]["name"] = "<b>base"
    read = Reader(page(replace(run, folder=tmp_path, results=results)))
    assert "script" not in read.tags and "b" in read.tags
    assert "<script>alert(1)</script>" in read.text and "<b>base" in read.text


def test_how_to_make_it_again_quotes_for_a_shell(tmp_path):
    (tmp_path / ".hydra").mkdir()
    said = ["pruning=fine_grained", 'pruning.protect=["stage1*"]']
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(said))
    lines = again(tmp_path, {"commit": "abc"}).splitlines()
    assert lines[0] == "git checkout abc"
    assert lines[1] == "python run.py pruning=fine_grained 'pruning.protect=[\"stage1*\"]'"
    assert "not committed" in again(tmp_path, {"commit": "abc", "modified": True})


def test_how_to_make_it_again_is_the_runs_own_record(tmp_path):
    (tmp_path / ".hydra").mkdir()
    # of a later command, which was refused
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=9\n")
    record = tmp_path / "environment.json"
    record.write_text(json.dumps({"overrides": ["seed=1"]}))
    assert "python run.py seed=1\n" in again(tmp_path, {})
    assert Job(tmp_path).overrides == ["seed=1"]
    # a run that Python called has no command
    record.write_text(json.dumps({"overrides": None}))
    assert "run.py" not in again(tmp_path, {}) and Job(tmp_path).overrides == []
    # an older version's record
    record.write_text(json.dumps({"commit": "abc"}))
    assert "python run.py seed=9\n" in again(tmp_path, {})


def test_a_network_that_fell_silent_is_told_at_the_head(tmp_path, run):
    results = report_runs.results()
    results["rows"][-1]["silent"] = True
    read = Reader(page(replace(run, folder=tmp_path, results=results)))
    head = read.text[: read.text.index("What was asked")]
    assert "Dead network, not a saving: fine_grained + fine-tuning fired no spike" in head
    assert "silent so nothing is saved" in head and "memory saved" not in head
    # the spikes of a network may also end before the classifier
    numbers = {**dict.fromkeys(DIAGNOSTICS_COLUMNS, 1), "segment": "head", "group": ""}
    dead = replace(run, diagnostics=pd.DataFrame([numbers]))
    cut = report_runs.results()
    del cut["rows"][-1]
    told = "no spike reaches the classifier"
    # the row says of the base network, too, that it was silent
    assert warnings(replace(dead, results=cut)) == [
        f"Dead network, not a saving: after the cut {told}, and none did before."
    ]
    # which is not what the table's last network is
    tuned = report_runs.results()
    tuned["rows"][-1]["stage"] = "finetuned"
    alive = replace(run, diagnostics=pd.DataFrame([numbers | {"silent_base": 0}]))
    assert warnings(replace(alive, results=tuned)) == [
        f"Dead network, not a saving: after the cut, before fine-tuning, {told}."
    ]
    assert warnings(run) == []


def test_a_base_network_at_chance_is_told_at_the_head(run):
    results = copy.deepcopy(run.results)
    results["rows"][-1]["guesses"] = True
    assert warnings(replace(run, results=results)) == []
    results["rows"][0]["guesses"] = True
    (told,) = warnings(replace(run, results=results))
    assert told.startswith("Nothing to lose: the base network")


def test_the_images_are_called_what_they_are(run):
    kinds = {"test": page(run)}
    measured = {**run.results["run"], "split": "validation"}
    kinds["validation"] = page(replace(run, results={**run.results, "run": measured}))
    for split, text in kinds.items():
        assert f"{split} top-1, " in text and f"networks of the table on the {split} set" in text
    assert "test top-1" not in kinds["validation"]


def test_versions_come_from_the_run_not_from_today(tmp_path, run):
    told = {"torch": "2.0.0+made.up", "packages": {"torch": "2.0.0"}, "commit": "0f0f"}
    (tmp_path / "environment.json").write_text(json.dumps(told))
    text = Reader(page(replace(run, folder=tmp_path))).text
    assert "torch 2.0.0+made.up" in text and "torch==2.0.0" in text and "commit 0f0f" in text


def test_only_what_was_set_was_asked(run):
    config = {"pruning": {"max_accuracy_drop": 1.5, "protect": []}, "finetune": {"epochs": 0}}
    found = dict(asked(replace(run, config=config)))
    assert found["largest accuracy drop"] == "1.5 points" and found["fine-tuning epochs"] == "0"
    assert "protected" not in found and "tags" not in found


def test_markdown_loses_its_heading_and_pictures_and_keeps_its_tables():
    html = from_markdown(
        "# Why\n\n![x](y.png)\n\n## Part\n\n| a | b |\n| --- | ---: |\n| 1 | <i> |\n"
    )
    read = Reader(html)
    assert "Why" not in html and "img" not in read.tags and "i" not in read.tags
    assert read.text == "Part a b 1 <i>" and read.tags.count("td") == 2
