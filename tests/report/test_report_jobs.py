import pytest
import yaml
from comparison_runs import change, write_job

from psvit.report.comparison import comparison_table, read_runs
from psvit.report.comparison_text import markdown


def configure(folder, **sections):
    """Adds sections to a job's config."""
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        with path.open("a") as file:
            yaml.safe_dump(sections, file)


@pytest.mark.parametrize("policy", ["fine_grained", "prioritized", "budgeted"])
def test_plans_from_other_grids_are_not_averaged(tmp_path, policy):
    # the grid shapes the plan, and not the uniform network beside it
    for number, (ratios, top1) in enumerate([([0.3], 88.0), ([0.2, 0.7], 80.0)]):
        found = {"base": 90.0, "uniform": 70.0, "pruned": top1}
        write_job(tmp_path / str(number), policy, 0, found, ratios=ratios)
    table = comparison_table(read_runs([tmp_path])).set_index(["policy", "settings"])["drop"]
    assert table.to_dict() == {
        (policy, "pruning.ratios=[0.3]"): 2.0,
        (policy, "pruning.ratios=[0.2, 0.7]"): 10.0,
        ("uniform", ""): 20.0,
    }


@pytest.mark.parametrize("policy", ["uniform", "global"])
def test_the_grid_of_a_policy_that_reads_none_is_no_setting(tmp_path, policy):
    for seed, ratios in enumerate([[0.3], [0.2, 0.7]]):
        found = {"base": 90.0, "pruned": 80.0}
        write_job(tmp_path / str(seed), policy, seed, found, ratios=ratios)
    (row,) = comparison_table(read_runs([tmp_path])).to_dict("records")
    assert (row["settings"], row["seeds"]) == ("", 2)


def test_what_was_measured_otherwise_is_told_apart(tmp_path):
    # one network, counted with two prices of an operation
    for number, (price, energy) in enumerate([(4.6, 9.2), (1.0, 2.0)]):
        top1 = {"base": 90.0, "uniform": 80.0, "pruned": 85.0}
        folder = write_job(tmp_path / str(number), "budgeted", 0, top1)
        configure(folder, measure={"mac_pj": price, "images": 64})

        def cost(results, energy=energy):
            for place, row in enumerate(results["rows"]):
                row.update(macs=1e9, sops=1e8, energy_mj=energy / (place + 1), silent=False)

        change(folder, cost)
    long = read_runs([tmp_path])
    table = comparison_table(long).set_index(["policy", "settings"])["energy_mj"]
    dear, cheap = "measure.mac_pj=4.6", "measure.mac_pj=1.0"
    assert table.to_dict() == {
        ("uniform", dear): 4.6,
        ("uniform", cheap): 1.0,
        ("budgeted", dear): pytest.approx(9.2 / 3),
        ("budgeted", cheap): pytest.approx(2 / 3),
    }
    text = markdown(comparison_table(long), long)
    # the base network is one, what it takes was counted twice
    assert text.count("base network 90.00 % top-1") == 1
    taken = text.split("## What they take")[1].splitlines()
    bases = [[cell.strip() for cell in line.split("|")] for line in taken if "| base " in line]
    assert [("9.20" in line, dear in line) for line in bases] == [(True, True), (False, False)]
    assert "2.00" in bases[1] and cheap in bases[1]
