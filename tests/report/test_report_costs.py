import pytest
from comparison_runs import change, write_job

from psvit.report.comparison import comparison_table, read_runs
from psvit.report.comparison_text import markdown


def measured(folder, macs, firing_rate, latency, silent=False):
    """Give the base network and the pruned one of a job these figures, base first."""

    def edit(results):
        results["timing"] = {}
        for row, operations, rate, ms in zip(
            results["rows"], macs, firing_rate, latency, strict=True
        ):
            row.update(macs=operations, sops=operations * rate, firing_rate=rate)
            row.update(energy_mj=operations * rate * 9e-10, silent=silent and rate == 0)
            timing = {"latency_ms": ms, "speedup": latency[0] / ms, "throughput": 1e3 / ms}
            results["timing"][row["name"]] = timing

    change(folder, edit)


def section(folder):
    """The part of the page: policy -> heading -> cell."""
    long = read_runs([folder])
    text = markdown(comparison_table(long), long)
    if "## What they take" not in text:
        return None
    lines = text.split("## What they take")[1].strip().splitlines()
    heading, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    return {row[heading.index("policy")]: dict(zip(heading, row, strict=True)) for row in rows}


@pytest.fixture
def two_seeds(tmp_path):
    for seed, latency in enumerate([(10.0, 5.0), (20.0, 8.0)]):
        folder = write_job(tmp_path / str(seed), "budgeted", seed, {"base": 90.0, "pruned": 89.0})
        measured(folder, (2e9, 1e9 + seed * 2e8), (0.1, 0.2 + 0.1 * seed), latency)
    return tmp_path


def test_means_over_the_seeds_by_hand(two_seeds):
    long = read_runs([two_seeds])
    (row,) = comparison_table(long).to_dict("records")
    assert row["macs"] == pytest.approx(1.1e9)
    assert row["firing_rate"] == pytest.approx(0.25)
    assert row["latency_ms"] == pytest.approx(6.5)
    # the mean of 10 / 5 and 20 / 8
    assert row["speedup"] == pytest.approx(2.25)
    assert not row["silent"]
    # the base network's stand beside them, a run each
    assert long.sort_values("seed")["base_latency_ms"].tolist() == [10.0, 20.0]


def test_the_section_has_the_base_network_and_the_others(two_seeds):
    found = section(two_seeds)
    assert list(found) == ["base", "budgeted"]
    names = ["MACs G", "firing rate %", "latency ms", "speed-up"]
    assert [found["base"][name] for name in names] == ["2.00", "10.0", "15.00", "1.00"]
    assert [found["budgeted"][name] for name in names] == ["1.10", "25.0", "6.50", "2.25"]
    # 1e9 x 0.2 and 1.2e9 x 0.3 spikes' operations at 0.9 pJ: 0.18 and 0.324 mJ
    assert found["budgeted"]["energy mJ"] == "0.252"


def test_what_was_not_timed_has_no_column_of_times(tmp_path):
    folder = write_job(tmp_path / "0", "budgeted", 0, {"base": 90.0, "pruned": 89.0})
    assert section(tmp_path) is None
    measured(folder, (2e9, 1e9), (0.1, 0.2), (10.0, 5.0))
    change(folder, lambda results: results.pop("timing"))
    assert not {"latency ms", "speed-up", "images/s"} & set(section(tmp_path)["base"])


def test_a_silent_network_has_saved_no_energy(two_seeds):
    folder = write_job(two_seeds / "2", "budgeted", 2, {"base": 90.0, "pruned": 10.0})
    measured(folder, (2e9, 1e9), (0.1, 0.0), (10.0, 5.0), silent=True)
    found = section(two_seeds)
    assert (found["budgeted"]["SOPs G"], found["budgeted"]["energy mJ"]) == ("silent", "silent")
    assert found["budgeted"]["MACs G"] == "1.07" and found["base"]["SOPs G"] == "0.200"


def test_a_silent_base_network_is_told_as_well(tmp_path):
    folder = write_job(tmp_path / "0", "budgeted", 0, {"base": 10.0, "pruned": 10.0})
    measured(folder, (2e9, 1e9), (0.0, 0.0), (10.0, 5.0), silent=True)
    found = section(tmp_path)
    assert found["base"]["energy mJ"] == found["budgeted"]["energy mJ"] == "silent"


def test_runs_that_prune_nothing_are_the_base_network_alone(tmp_path):
    folder = write_job(tmp_path / "0", "none", 0, {"base": 90.0})
    measured(folder, (2e9,), (0.1,), (10.0,))
    found = section(tmp_path)
    assert list(found) == ["base"] and found["base"]["latency ms"] == "10.00"


def test_a_base_network_that_one_seed_left_silent_is_told(two_seeds):
    change(two_seeds / "1", lambda results: results["rows"][0].update(silent=True, sops=0.0))
    assert section(two_seeds)["base"]["SOPs G"] == "silent"
    long = read_runs([two_seeds])
    text = markdown(comparison_table(long), long)
    assert "**Dead base network (seed=1): it fired no spike" in text
    assert "seed=0) it fired" not in text


def test_base_networks_that_were_made_differently_are_not_averaged(tmp_path):
    for number, (steps, top1, macs) in enumerate([(1, 25.0, 1e9), (3, 41.0, 3e9)]):
        for seed in (0, 1):
            found = {"base": top1, "uniform": top1 - 2, "pruned": top1 - 1}
            folder = write_job(tmp_path / f"{number}{seed}", "budgeted", seed, found)
            config = folder / ".hydra" / "config.yaml"
            config.write_text(config.read_text() + f"training: {{time_steps: {steps}}}\n")
            (folder / "config.yaml").write_text(config.read_text())
            measured(folder, (macs, macs / 2, macs / 2), (0.1, 0.2, 0.2), (10.0, 5.0, 5.0))
    long = read_runs([tmp_path])
    text = markdown(comparison_table(long), long)
    for steps, top1, macs in ((1, "25.00", "1.00"), (3, "41.00", "3.00")):
        made = f"training.time_steps={steps}"
        assert f"meta_spikeformer on digits, {made}: base network {top1} ± 0.00 % top-1" in text
        taken = text.split("## What they take")[1]
        rows = [line for line in taken.splitlines() if line.endswith(f"| {made} |")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
        assert ["base", *["half"] * 2] == [
            "base" if "base" in line and macs in line else "half" for line in cells
        ]
