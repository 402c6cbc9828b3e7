import pytest
import yaml
from comparison_runs import change, write_job

from psvit.report.comparison import best, comparison_table, read_runs
from psvit.report.comparison_text import headline_table, markdown


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


@pytest.fixture
def two_bases(tmp_path):
    """Policies on networks of one and of three time steps, whose drops nobody may rank together."""
    jobs = [("fine_grained", 1, 9.0), ("global", 1, 4.0), ("fine_grained", 3, 2.0)]
    for policy, steps, drop in [*jobs, ("budgeted", 3, 1.0)]:
        found = {"base": 90.0 + steps, "uniform": 70.0, "pruned": 90.0 + steps - drop}
        folder = write_job(tmp_path / f"{policy}{steps}", policy, 0, found)
        configure(folder, training={"time_steps": steps})
    return tmp_path


def test_networks_of_different_base_networks_are_in_different_contests(two_bases):
    table = comparison_table(read_runs([two_bases]))
    winners = table[best(table)].sort_values("base")
    assert winners[["policy", "settings", "base"]].values.tolist() == [
        [policy, made, made]
        for policy, made in (
            ("global", "training.time_steps=1"),
            ("budgeted", "training.time_steps=3"),
        )
    ]


def test_the_headline_has_each_policy_on_each_base_network(two_bases):
    headline = headline_table(comparison_table(read_runs([two_bases])))
    found = headline.set_index(["policy", "settings"])
    drops = {"fine_grained": (9.0, 2.0), "global": (4.0, None), "budgeted": (None, 1.0)}
    for policy, pair in drops.items():
        for steps, drop in zip((1, 3), pair, strict=True):
            if drop is not None:
                line = found.loc[(policy, f"training.time_steps={steps}")]
                assert (line["which"], line["30 %"]) == ("l2, none = best", f"{drop:.2f}")
    assert len(headline[headline["policy"] != "uniform"]) == 4


def test_checkpoints_of_several_seeds_are_one_setting_of_each_policy(tmp_path):
    # two policies, each from checkpoints of its own
    for policy, drop in (("fine_grained", 5.0), ("budgeted", 2.0)):
        for seed in (0, 1):
            found = {"base": 90.0, "pruned": 90.0 - drop}
            folder = write_job(tmp_path / f"{policy}{seed}", policy, seed, found)
            configure(folder, ckpt_path=f"{policy}/{seed}")
    table = comparison_table(read_runs([tmp_path])).set_index("policy", drop=False)
    assert table[["seeds", "settings", "base"]].to_dict("index") == {
        name: {"seeds": 2, "settings": "", "base": f"ckpt_path={name}/0"}
        for name in ("fine_grained", "budgeted")
    }
    assert best(table).all()


def test_a_base_network_that_nothing_was_cut_from_names_the_others_alike(tmp_path):
    found = {"base": 90.0, "uniform": 70.0, "pruned": 80.0}
    jobs = [("none", {"base": 91.0}, 3), ("fine_grained", found, 1)]
    for policy, top1, steps in [*jobs, ("uniform", {"base": 90.0, "pruned": 70.0}, 1)]:
        folder = write_job(tmp_path / policy, policy, 0, top1)
        configure(folder, training={"time_steps": steps})
    table = comparison_table(read_runs([tmp_path])).set_index("policy")["settings"]
    assert table.to_dict() == {
        name: f"training.time_steps={3 if name == 'none' else 1}"
        for name in ("none", "fine_grained", "uniform")
    }
