import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import report_runs

from psvit.errors import UserError
from psvit.report import write_report
from psvit.report.__main__ import main
from psvit.report.files import CLASSES_COLUMNS, read_run
from psvit.report.multirun_page import sensitivities

TWO = {"stage1.block1.mlp.hidden": ("hidden", 64), "stage1.block1.conv.hidden": ("hidden", 32)}


def test_command_remakes_the_report_and_prints_the_table(tmp_path, capsys):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    assert main([str(folder)]) == 0
    assert (folder / "table.md").is_file() and (folder / "figures" / "plan.svg").is_file()
    assert not (folder / "comparison.md").exists()
    assert "fine_grained + fine-tuning" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_one_line_and_status_2(tmp_path):
    # which tells on stderr what is imported
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0", "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", "psvit.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    imported = [line.split("|")[-1].strip() for line in lines if line.startswith("import time:")]
    assert [line for line in lines if not line.startswith("import time:")] == [
        f"folder={tmp_path}: not a run folder: it holds no results.json"
    ]
    # a report is made from files: what takes seconds to import is not needed
    assert "psvit.report" in imported and not {"torch", "lightning", "hydra"} & set(imported)


def test_why_a_job_left_no_results_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=-1\n")
    (tmp_path / "failure.txt").write_text("seed=-1: expected a whole number\n")
    assert main([str(tmp_path)]) == 2
    said = "its job failed, and left no results.json: seed=-1: expected a whole number"
    assert capsys.readouterr().err == f"folder={tmp_path}: {said}\n"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", '{"rows": [', "results.json cannot be read"),
        ("results.json", "[]", "results.json holds no rows"),
        ("results.json", '{"rows": [{"name": "base"}]}', "lacks top1"),
        ("plan.yaml", "groups: {a: [", "plan.yaml cannot be read"),
        ("plan.yaml", "groups: {a: {size: 3}}", "a has no size and kept"),
        ("sensitivity.csv", "group,ratio\na,0.1\n", "sensitivity.csv lacks the columns kind"),
        ("uniform.csv", "", "uniform.csv cannot be read"),
        ("results.json", '{"rows": [[]]}', "results.json holds no rows"),
        ("config.yaml", "- a", "config.yaml cannot be read (expected a mapping)"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, said):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    (folder / file).write_text(content)
    with pytest.raises(UserError) as error:
        write_report(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_words_for_numbers_are_told(tmp_path, capsys):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    path = folder / "sensitivity.csv"
    heading, first, *rest = path.read_text().splitlines()
    cells = first.split(",")
    cells[heading.split(",").index("loss")] = "much"
    path.write_text("\n".join([heading, ",".join(cells), *rest]))
    assert main([str(folder)]) == 2
    said = f"folder={folder}: sensitivity.csv: loss holds what is no number\n"
    assert capsys.readouterr().err == said


def test_what_no_run_writes_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    folder = report_runs.write_run(tmp_path / "run", TWO)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["rows"][0]["top1"] = []
    path.write_text(json.dumps(results))
    assert main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "holds what no run writes (TypeError: " in said
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(TypeError):
        main([str(folder)])


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    folder = report_runs.write_run(tmp_path / "run", TWO)
    (tmp_path / "file").write_text("")
    assert main([str(folder), "--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--out={tmp_path / 'file'}: ") and line.endswith("File exists")


def test_a_class_may_be_called_na(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    row = {"network": "base", "images": 4, "top1": 50.0, "base_top1": 50.0, "change": 0.0}
    rows = pd.DataFrame([{**row, "class": name} for name in ("NA", "nan", "null", "cat")])
    rows.reindex(columns=[*CLASSES_COLUMNS]).fillna(0.0).to_csv(folder / "classes.csv", index=False)
    assert read_run(folder).classes["class"].tolist() == ["NA", "nan", "null", "cat"]


def test_half_a_row_and_a_row_measured_twice_do_no_harm(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    whole = read_run(folder).sensitivity
    rows = (folder / "sensitivity.csv").read_text().splitlines()
    (folder / "sensitivity.csv").write_text("\n".join([*rows, rows[-1], "stage1.block1.mlp"]))
    found = read_run(folder).sensitivity.reset_index(drop=True)
    pd.testing.assert_frame_equal(found, whole, check_dtype=False)


def of_an_earlier_version(folder, images=360):
    """``sensitivity.csv`` as it was before it had drops; returns today's."""
    today = pd.read_csv(folder / "sensitivity.csv")
    base = report_runs.results()["validation"]["top1"]
    before = today.assign(top1=base - today["drop"], images=images)
    columns = ["drop", "drop_stderr"]
    before.drop(columns=columns).to_csv(folder / "sensitivity.csv", index=False)
    return today


def test_a_table_without_drops_is_read_where_its_images_are_the_base_networks(tmp_path):
    folder = report_runs.write_run(tmp_path / "run", TWO)
    today = of_an_earlier_version(folder)
    write_report(folder)
    assert (folder / "figures/sensitivity_curves.png").is_file()
    for rows in (read_run(folder).sensitivity, *sensitivities([str(folder)]).values()):
        np.testing.assert_allclose(rows["drop"], today["drop"], atol=1e-9)
        assert (rows["drop_stderr"] == 0).all()


def test_a_table_without_drops_on_fewer_images_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    folder = report_runs.write_run(tmp_path / "run", TWO)
    of_an_earlier_version(folder, images=128)
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "an earlier version made sensitivity.csv, on fewer images" in line
    assert line.startswith(f"folder={folder}: ") and line.endswith("the run made again")
