"""The page of why, from made files."""

import json

import pandas as pd
import pytest

from psvit.report.files import read_run
from psvit.report.why import write_why


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"name": "base", "policy": "none", "stage": "base", "memory_saving": 0.0},
        {"name": "fine_grained", "policy": "fine_grained", "stage": "pruned"},
    ]
    for row in rows:
        row.update(top1=90.0, parameters=1000, memory_mb=0.004)
    rows[1]["memory_saving"] = 0.2251
    results = {
        "run": {"pruning": "fine_grained"},
        "target_memory_saving": 0.224,
        "prediction": {"measure": "loss", "predicted": 0.0123, "measured": 0.0456},
        "rows": rows,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "config.yaml").write_text("pruning: {max_accuracy_drop: 1.5}")
    pd.DataFrame(
        {
            "round": 1,
            "group": ["a.hidden", "b.value"],
            "kind": ["hidden", "value"],
            "size": [64, 32],
            "removed": [16, 0],
            "ratio": [0.25, 0.0],
            "predicted_cost": [0.0123, None],
            "parameters_saved": [12345, 0],
        }
    ).to_csv(tmp_path / "plan.csv", index=False)
    return tmp_path


def test_page_tells_what_was_asked_and_reached(folder):
    write_why(read_run(folder))
    page = (folder / "plan.md").read_text()
    assert "a memory saving of 22.4 %, at most 1.5 points of validation top-1 lost" in page
    assert "Reached: 22.51 % of the parameters." in page
    assert "0.0123 nats (increase of the cross-entropy)" in page and "0.0456" in page
    assert "| a.hidden | 64 | 16 | 0.25 | 0.0123 | 12,345 |" in page
    # a policy that predicts nothing says so
    assert "| b.value | 32 | 0 | 0.00 | – | 0 |" in page
    assert "Round" not in page


def test_each_round_has_its_table(folder):
    table = pd.read_csv(folder / "plan.csv")
    pd.concat([table, table.assign(round=2)]).to_csv(folder / "plan.csv", index=False)
    write_why(read_run(folder))
    page = (folder / "plan.md").read_text()
    assert page.index("## Round 1") < page.index("## Round 2")
    assert page.count("| a.hidden |") == 2


def test_what_every_resource_of_the_budget_was_to_save_and_does(folder):
    results = json.loads((folder / "results.json").read_text())
    base, first = results["rows"]
    base |= {"macs": 100.0, "sops": 10.0}
    last = first | {"memory_saving": 0.35, "macs": 75.0, "sops": 8.0}
    first |= {"macs": 90.0, "sops": 9.0}
    results["rows"].append(last)
    results["prediction"] |= {"of": "recovered", "predicted": 1.2e-5, "measured_after_recovery": 2}
    (folder / "results.json").write_text(json.dumps(results))
    budget = "budget: [memory, macs, synops], target_saving: {macs: 0.3}"
    (folder / "config.yaml").write_text(f"pruning: {{{budget}}}")
    table = pd.read_csv(folder / "plan.csv")
    pd.concat([table, table.assign(round=2)]).to_csv(folder / "plan.csv", index=False)
    write_why(read_run(folder))
    page = (folder / "plan.md").read_text()
    asked = "a memory saving of 22.4 %, 30 % of the MACs, 22.4 % of the spike operations."
    assert f"Asked for: {asked}" in page
    reached = "35.00 % of the parameters, 25.00 % of the MACs, 20.00 % of the spike operations."
    assert f"Reached: {reached}" in page
    assert "Predicted cost of the last round: 1.2e-05 nats" in page
    assert "measured behind recovery: 2." in page


def test_no_page_without_a_plan(folder):
    (folder / "plan.csv").unlink()
    write_why(read_run(folder))
    assert not (folder / "plan.md").exists()
