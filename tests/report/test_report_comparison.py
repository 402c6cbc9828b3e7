import math

import pandas as pd
import pytest
from comparison_runs import change, row, write_job, write_multirun

from psvit.errors import UserError
from psvit.report.comparison import comparison_table, read_runs
from psvit.report.comparison_text import headline_table, markdown


def compared(*folders):
    """policy, recovery -> its row of the table; for tables of one target and importance."""
    table = comparison_table(read_runs(folders))
    return table[table["status"] == "done"].set_index(["policy", "recovery"]).sort_index()


@pytest.fixture
def multirun(tmp_path):
    return write_multirun(tmp_path / "multirun")


def test_means_and_deviations_by_hand(multirun):
    table = compared(multirun)
    assert len(table) == 4
    # the mean of 2, 3, 4 and its sample standard deviation; of 4, 6: sqrt(2)
    expected = {
        ("uniform", "none"): (12.0, 2.0, 3),
        ("fine_grained", "none"): (5.0, math.sqrt(2), 2),
        ("budgeted", "none"): (3.0, 1.0, 3),
        ("budgeted", "both"): (1.0, 0.0, 3),
    }
    for key, (drop, deviation, seeds) in expected.items():
        found = table.loc[key]
        assert found["drop"] == pytest.approx(drop)
        assert found["drop_sd"] == pytest.approx(deviation, abs=1e-9)
        assert found["seeds"] == seeds
        assert found["memory_saving"] == pytest.approx(0.3)
        assert found["target"] == "30 %"
    # top-1 of uniform is 86, 85, 84
    assert table.loc[("uniform", "none"), "top1"] == pytest.approx(85.0)
    assert table.loc[("uniform", "none"), "top1_sd"] == pytest.approx(1.0)


def test_the_rival_of_several_runs_is_counted_once(multirun):
    long = read_runs([multirun])
    rivals = long[long["policy"] == "uniform"]
    # beside fine_grained of seeds 0 and 1, and beside budgeted of seeds 0, 1 and 2
    assert sorted(rivals["seed"]) == [0, 1, 2]


def test_a_uniform_run_is_the_rival_at_the_same_saving(tmp_path):
    found = {"base": 90.0, "uniform": 70.0, "pruned": 80.0}
    write_job(tmp_path / "0", "fine_grained", 0, found)
    write_job(tmp_path / "1", "uniform", 0, {"base": 90.0, "pruned": 70.0}, ratio=0.2)
    write_job(tmp_path / "2", "uniform", 0, {"base": 90.0, "pruned": 60.0}, importance="taylor")
    table = comparison_table(read_runs([tmp_path]))
    uniform = table[table["policy"] == "uniform"].set_index("importance")
    assert uniform["drop"].to_dict() == {"l2": 20.0, "taylor": 30.0}


def test_one_seed_measured_twice_counts_as_its_mean(tmp_path):
    # base networks trained twice that differ, as on a GPU: the rival's drops are 10 and 12, then 20
    for number, (seed, drop) in enumerate([(0, 10.0), (0, 12.0), (1, 20.0)]):
        found = {"base": 90.0 + number, "uniform": 90.0 + number - drop, "pruned": 90.0}
        write_job(tmp_path / str(number), "fine_grained", seed, found)
    uniform = compared(tmp_path).loc[("uniform", "none")]
    assert (uniform["drop"], uniform["seeds"]) == (15.5, 2)
    assert uniform["drop_sd"] == pytest.approx(9 / math.sqrt(2))


def test_a_failed_job_is_named_and_hides_no_other(multirun):
    long = read_runs([multirun])
    table = comparison_table(long)
    failed = table[table["status"] == "failed"]
    assert failed["job"].tolist() == ["pruning=fine_grained seed=2 (no results)"]
    assert failed[["policy", "target"]].values.tolist() == [["fine_grained", "30 %"]]
    text = markdown(table, long)
    assert "pruning=fine_grained seed=2 (no results)" in text and "1 failed job" in text


@pytest.mark.parametrize("content", ['{"rows": [', "[]", '{"rows": [{"name": "base"}]}', "3"])
def test_results_that_cannot_be_read_are_a_failed_job(multirun, content):
    (multirun / "0" / "results.json").write_text(content)
    long = read_runs([multirun])
    failed = long[long["status"] == "failed"]
    assert len(failed) == 2 and "cannot be read" in failed["job"].iloc[0]
    assert (comparison_table(long)["status"] == "done").sum() == 4


def test_a_job_that_was_stopped_counts_what_it_measured(tmp_path):
    write_job(tmp_path / "0", "budgeted", 0, {"base": 90.0, "uniform": 70.0}, recovery="both")
    done = {"base": 90.0, "pruned": 85.0, "finetuned": 89.0}
    write_job(tmp_path / "1", "fine_grained", 0, done)
    stopped = {"base": 91.0, "pruned": 86.0}
    write_job(tmp_path / "2", "fine_grained", 1, stopped, epochs=4)
    table = comparison_table(read_runs([tmp_path]))
    unfinished = table[table["status"] == "unfinished"]
    assert unfinished["policy"].tolist() == ["budgeted", "fine_grained"]
    seeds = table[table["status"] == "done"].set_index(["policy", "recovery"])["seeds"]
    assert seeds.to_dict() == {
        ("uniform", "none"): 1,
        ("fine_grained", "none"): 2,
        ("fine_grained", "fine-tuning"): 1,
    }


def test_a_run_of_before_the_keys_is_read_alike(multirun):
    before = comparison_table(read_runs([multirun]))

    def forget(results):
        for key in ("importance", "recovery", "budget", "rounds"):
            del results["run"][key]
        for entry in results["rows"]:
            del entry["policy"], entry["stage"]

    for folder in multirun.glob("*/results.json"):
        change(folder.parent, forget)
    pd.testing.assert_frame_equal(comparison_table(read_runs([multirun])), before)


def test_recovery_and_fine_tuning_are_told_apart(tmp_path):
    found = {"base": 90.0, "pruned": 70.0, "recovered": 80.0, "finetuned": 88.0}
    write_job(tmp_path / "0", "fine_grained", 0, found, recovery="bn")
    write_job(tmp_path / "1", "fine_grained", 0, {"base": 90.0, "pruned": 70.0, "finetuned": 87.0})
    drops = compared(tmp_path)["drop"].droplevel("policy").to_dict()
    assert drops == {"none": 20.0, "bn": 10.0, "bn + fine-tuning": 2.0, "fine-tuning": 3.0}


def test_a_plan_that_counts_on_a_recovery_is_not_mixed_with_one_that_does_not(tmp_path):
    for number, (recovery, top1) in enumerate([("none", 85.0), ("both", 75.0)]):
        found = {"base": 90.0, "pruned": top1}
        found |= {"recovered": 89.0} if recovery == "both" else {}
        write_job(tmp_path / str(number), "budgeted", 0, found, recovery=recovery)
    long = read_runs([tmp_path])
    table = comparison_table(long).set_index(["recovery", "settings"])["drop"]
    assert table.to_dict() == {
        ("both", ""): 1.0,
        ("none", ""): 5.0,
        ("none", "planned for recovery=both"): 15.0,
    }
    assert "cut by a plan that counts on it" in markdown(comparison_table(long), long)


def test_runs_that_differ_in_an_option_are_not_averaged(tmp_path):
    for number, (share, epochs, top1) in enumerate([(0.5, 2, 80.0), (0.5, 4, 80.0), (1.0, 4, 70)]):
        found = {"base": 90.0, "uniform": 60.0, "pruned": top1, "finetuned": top1 + epochs}
        options = {"large_share": share, "epochs": epochs}
        write_job(tmp_path / str(number), "fine_grained", 0, found, **options)
    drops = comparison_table(read_runs([tmp_path])).set_index(["policy", "recovery", "settings"])
    assert drops["drop"].to_dict() == {
        # neither option is one of the rival's, nor the epochs of the network before fine-tuning
        ("uniform", "none", ""): 30.0,
        ("fine_grained", "none", "pruning.large_share=0.5"): 10.0,
        ("fine_grained", "none", "pruning.large_share=1.0"): 20.0,
        ("fine_grained", "fine-tuning", "pruning.large_share=0.5, finetune.epochs=2"): 8.0,
        ("fine_grained", "fine-tuning", "pruning.large_share=0.5, finetune.epochs=4"): 6.0,
        ("fine_grained", "fine-tuning", "pruning.large_share=1.0, finetune.epochs=4"): 16.0,
    }


def test_uniform_networks_of_policies_that_cut_other_kinds_are_not_averaged(tmp_path):
    for policy, kinds, uniform in [
        ("fine_grained", ["hidden"], 80.0),
        ("budgeted", ["hidden", "stream"], 60.0),
    ]:
        found = {"base": 90.0, "uniform": uniform, "pruned": 85.0}
        write_job(tmp_path / policy, policy, 0, found, kinds=kinds)
    found = {"base": 90.0, "uniform": 80.0, "pruned": 86.0}
    kinds = {"kinds": ["hidden", "stream"], "uniform_kinds": ["hidden"]}
    write_job(tmp_path / "global", "global", 0, found, **kinds)
    # what the uniform network may cut of what the job may
    found = {"base": 90.0, "uniform": 70.0, "pruned": 84.0}
    kinds = {"kinds": ["value", "stream"], "uniform_kinds": ["hidden", "value"]}
    write_job(tmp_path / "prioritized", "prioritized", 0, found, **kinds)
    write_job(tmp_path / "uniform", "uniform", 0, {"base": 90.0, "uniform": 80.0}, kinds=["hidden"])
    drops = comparison_table(read_runs([tmp_path])).set_index(["policy", "settings"])["drop"]
    assert drops.to_dict() == {
        ("uniform", 'pruning.kinds=["hidden"]'): 10.0,
        ("uniform", 'pruning.kinds=["hidden", "stream"]'): 30.0,
        ("fine_grained", ""): 5.0,
        ("budgeted", ""): 5.0,
        ("global", ""): 4.0,
        ("uniform", 'pruning.kinds=["value"]'): 20.0,
        ("prioritized", ""): 6.0,
    }


def test_a_uniform_network_is_of_its_own_importance(tmp_path):
    found = {"base": 90.0, "uniform": 80.0, "pruned": 85.0}
    write_job(tmp_path / "0", "fine_grained", 0, found)
    options = {"importance": "fisher", "uniform_importance": "l2"}
    write_job(tmp_path / "1", "budgeted", 0, found, **options)
    write_job(tmp_path / "2", "global", 0, {**found, "uniform": 70.0}, importance="fisher")
    table = comparison_table(read_runs([tmp_path])).set_index(["policy", "importance"])
    assert table.loc["uniform", "drop"].to_dict() == {"l2": 10.0, "fisher": 20.0}
    assert table.loc[("budgeted", "fisher"), "drop"] == 5.0


@pytest.mark.parametrize(("seeds", "rows"), [((0, 1), 1), ((0, 0), 2)])
def test_a_base_network_for_each_seed_is_no_setting(tmp_path, seeds, rows):
    for number, seed in enumerate(seeds):
        found = {"base": 90.0, "pruned": 80.0 - number}
        folder = write_job(tmp_path / str(number), "fine_grained", seed, found)
        with (folder / "config.yaml").open("a") as file:
            file.write(f"ckpt_path: base{number}\n")
    assert len(comparison_table(read_runs([tmp_path]))) == rows


def test_rounds_that_are_not_the_last_are_left_out(tmp_path):
    found = {"base": 90.0, "pruned": 85.0, "finetuned": 89.0}
    folder = write_job(tmp_path / "0", "fine_grained", 0, found, rounds=2)

    def add_round(results):
        results["run"]["rounds"] = 2
        for stage, suffix in (("pruned", ""), ("finetuned", " + fine-tuning")):
            name = f"fine_grained, round 1 of 2{suffix}"
            results["rows"].insert(1, row(name, "fine_grained", stage, 50.0, 0.15))

    change(folder, add_round)
    table = comparison_table(read_runs([folder]))
    # the cut of the last round was trained in the one before it
    assert table["recovery"].tolist() == ["fine-tuning", "fine-tuning between rounds"]
    assert table["drop"].tolist() == [1.0, 5.0]
    assert headline_table(table).empty


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"target": 0.224}, "22.4 %"),
        ({"target": None, "ratio": 0.2}, "ratio 20 %"),
        ({"target": None, "max_accuracy_drop": 1.5}, "drop ≤ 1.5"),
        ({"target": 0.3, "max_accuracy_drop": 1.5}, "30 %"),
        ({"target": 0.3, "budget": "macs", "target_saving": 0.4}, "macs 40 %"),
        (
            {"target": 0.3, "budget": ["memory", "macs"], "target_saving": {"macs": 0.5}},
            "memory 30 %, macs 50 %",
        ),
    ],
)
def test_what_was_to_be_saved(tmp_path, options, shown):
    found = {"base": 90.0, "pruned": 70.0}
    folder = write_job(tmp_path / "0", "uniform", 0, found, **options)
    change(folder, lambda results: results["run"].pop("budget"))
    assert read_runs([folder])["target"].tolist() == [shown]


def test_targets_are_in_the_order_of_their_numbers_then_drops(tmp_path):
    jobs = [("a", 0.1, 80.0), ("b", 0.05, 70.0), ("c", 0.05, 75.0), ("d", None, 60.0)]
    for name, target, top1 in jobs:
        found = {"base": 90.0, "pruned": top1}
        importance = "taylor" if name == "b" else "l2"
        write_job(
            tmp_path / name, "uniform", 0, found, target=target, importance=importance, ratio=0.1
        )
    write_job(tmp_path / "e", "uniform", 0, {"base": 90.0, "pruned": 65.0}, target=None, ratio=0.05)
    table = comparison_table(read_runs([tmp_path]))
    assert list(zip(table["target"], table["drop"], strict=True)) == [
        ("5 %", 15.0),
        ("5 %", 20.0),
        ("10 %", 10.0),
        ("ratio 5 %", 25.0),
        ("ratio 10 %", 30.0),
    ]


def test_prediction_stands_beside_the_network_it_is_of(tmp_path):
    found = {"base": 90.0, "uniform": 60.0, "pruned": 70.0, "recovered": 85.0}
    folder = write_job(tmp_path / "0", "budgeted", 0, found, recovery="both")
    prediction = {"measure": "kl", "predicted": 0.2}
    prediction |= {"measured": 0.9, "measured_after_recovery": 0.25}
    change(folder, lambda results: results.update(prediction=prediction))
    long = read_runs([folder]).set_index("recovery")
    measured = long[long["policy"] == "budgeted"]["measured"].to_dict()
    assert measured == {"none": 0.9, "both": 0.25}
    assert long[long["policy"] == "uniform"]["predicted"].isna().all()


def test_what_rows_measure_besides_is_in_the_long_table(tmp_path):
    folder = write_job(tmp_path / "0", "uniform", 0, {"base": 90.0, "pruned": 70.0})
    change(folder, lambda results: results["rows"][1].update(macs=12345))
    assert read_runs([folder])["macs"].tolist() == [12345]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results.json"):
        read_runs([tmp_path])


def test_the_validation_set_is_not_compared_with_the_test_set(tmp_path):
    top1 = {"base": 90.0, "pruned": 88.0}
    jobs = [write_job(tmp_path / str(n), "budgeted", 0, top1) for n in range(2)]
    change(jobs[0], lambda results: results["run"].update(split="validation"))
    table = comparison_table(read_runs([tmp_path]))
    assert sorted(table["dataset"]) == ["digits", "digits (validation)"]
    assert table["seeds"].tolist() == [1, 1] and not table["settings"].any()
