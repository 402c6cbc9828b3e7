"""Several rounds of pruning, on a network that was never trained."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from psvit import pipeline
from psvit.channels import Plan
from psvit.decide import round_budget
from psvit.errors import UserError
from psvit.measure.operations import count_operations
from psvit.models import create_model
from psvit.pipeline import run
from psvit.pruning import checkpoint
from psvit.pruning.allocation.budget import Budget, make_meter
from psvit.pruning.surgery import prune

OPTIONS = ("pruning=global", "finetune=none", "train=false", "measure.images=8")


@pytest.fixture
def pruned(config, tiny_run, tmp_path):
    torch.manual_seed(0)
    network = create_model(
        "meta_spikeformer",
        embed_dims=[8, 16, 16, 16],
        num_heads=4,
        strides=[2, 2, 2, 1, 1],
        image_size=32,
        num_classes=10,
        time_steps=1,
    )
    checkpoint.save(network, tmp_path / "base")

    def ran(*overrides):
        options = (*tiny_run, *OPTIONS, f"ckpt_path={tmp_path}/base", *overrides)
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return run(config(*options), folder)["rows"]

    return ran


def test_each_round_saves_the_same_part_of_what_is_left(pruned):
    rows = {
        row["name"]: row["memory_saving"]
        for row in pruned("pruning.rounds=3", "pruning.target_memory_saving=0.5")
    }
    names = ["global, round 1 of 3", "global, round 2 of 3", "global"]
    # 1 - 0.5 ** (1 / 3) and 1 - 0.5 ** (2 / 3); no channel here is more than a hundredth
    expected = [0.2063, 0.3700, 0.5]
    for name, saving in zip(names, expected, strict=True):
        assert saving <= rows[name] + 1e-4 < saving + 0.01


def test_rounds_that_have_nothing_left_to_save_cut_nothing(pruned):
    options = "pruning.target_memory_saving=0.0002"
    (_, _, once), (_, _, first, *_, last) = pruned(options), pruned(options, "pruning.rounds=4")
    assert last["name"] == "global" and first["name"] == "global, round 1 of 4"
    assert once["parameters"] == first["parameters"] == last["parameters"]


def refused(monkeypatch, option):
    """Every round but the first."""
    decide = pipeline.decide

    def patched(stages, network, budget, number):
        if number > 1:
            raise UserError(option, 1, "is too much")
        return decide(stages, network, budget, number)

    monkeypatch.setattr(pipeline, "decide", patched)


def test_the_accuracys_limit_ends_the_rounds(pruned, monkeypatch):
    refused(monkeypatch, "pruning.max_accuracy_drop")
    rows = pruned("pruning.rounds=3", "pruning.recovery=bn", "pruning.calibration_images=64")
    assert [row["name"] for row in rows[-3:]] == [
        "global, round 1 of 3",
        "global, round 1 of 3 + recovery",
        "global + recovery",
    ]
    same = ("top1", "parameters", "stage", "policy")
    assert [rows[-1][key] for key in same] == [rows[-2][key] for key in same]


def test_a_round_that_fails_leaves_the_table_of_those_before(pruned, monkeypatch, tmp_path):
    refused(monkeypatch, "pruning.target_memory_saving")
    with pytest.raises(UserError) as error:
        pruned("pruning.rounds=3")
    assert str(error.value) == (
        "pruning.rounds=3: round 2 cannot do its part of what is left: "
        "pruning.target_memory_saving=1: is too much"
    )
    (table,) = tmp_path.glob("run*/table.md")
    assert "global, round 1 of 3" in table.read_text()


@pytest.mark.parametrize("memory", [0.001, 0.9])
def test_a_network_that_fell_silent_has_no_spikes_left_to_save(memory):
    network = create_model("sdt_v1", embed_dims=16, num_heads=2, depth=1, image_size=32)
    name, group = next(iter(network.channel_groups().items()))
    plan = Plan({name: tuple(range(0, group.size, 2))})
    # a step function stands for the neurons
    spikes = {"synops": lambda cut: 0.0 if cut else 10.0}
    whole = Budget(network, {"memory": memory, "synops": 0.5}, spikes)
    stages = SimpleNamespace(few_images=torch.zeros(1, 3, 32, 32))
    silent = prune(network, plan)
    for weight in silent.parameters():
        weight.data.zero_()
    if memory == 0.001:
        assert round_budget(stages, whole, plan, silent, 1.0) is None
    else:
        with pytest.raises(UserError, match="of synops it spends nothing to save"):
            round_budget(stages, whole, plan, silent, 1.0)


def test_spikes_left_to_save_are_those_of_the_network_as_it_was_mended():
    network = create_model("sdt_v1", embed_dims=16, num_heads=2, depth=1, image_size=32).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.4)
    name, group = next(iter(network.channel_groups().items()))
    plan = Plan({name: tuple(range(0, group.size, 2))})
    whole = Budget(network, {"synops": 0.6}, {"synops": make_meter(network, "synops", images)})
    mended = prune(network, plan)
    for module in mended.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.6)
    spends = float(count_operations(mended, images)["sops"].sum())
    assert spends > 1.05 * whole.spent("synops", plan)
    left = round_budget(SimpleNamespace(few_images=images), whole, plan, mended, 1.0)
    assert left.base["synops"] == pytest.approx(spends)
    # so that what stays is 40 % of what the base network spends
    kept = (1.0 - left.targets["synops"]) * spends
    assert kept == pytest.approx(0.4 * whole.base["synops"])


def test_a_round_that_is_left_out_keeps_its_number(pruned, monkeypatch, tmp_path):
    # what the first round saved is enough for the second one, too
    monkeypatch.setattr(
        pipeline,
        "round_budget",
        lambda *rest: None if rest[-1] == 0.5 else round_budget(*rest),
    )
    rows = pruned("pruning.rounds=4", "pruning.target_memory_saving=0.3")
    names = [row["name"] for row in rows[2:]]
    assert names == ["global, round 1 of 4", "global, round 3 of 4", "global"]
    assert pd.read_csv(tmp_path / "run1" / "plan.csv")["round"].unique().tolist() == [1, 3, 4]


def test_a_target_that_the_rounds_do_not_reach_is_told(pruned, monkeypatch, caplog):
    pruned("pruning.rounds=2", "pruning.target_memory_saving=0.3")
    assert not any("less than" in message for message in caplog.messages)
    refused(monkeypatch, "pruning.max_accuracy_drop")
    pruned("pruning.rounds=2", "pruning.target_memory_saving=0.3", "seed=1")
    (warning,) = (message for message in caplog.messages if "less than" in message)
    assert "% of memory, less than the 30 % asked for: pruning.max_accuracy_drop" in warning


@pytest.mark.parametrize(("bias", "told"), [(0.8, True), (0.2, False)])
def test_a_mended_network_that_fires_more_than_its_plan_saves_is_told(bias, told, config, caplog):
    torch.manual_seed(0)
    network = create_model("sdt_v1", embed_dims=16, num_heads=2, depth=1, image_size=32).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    name = "stem.conv2.hidden"
    plan = Plan({name: range(0, network.channel_groups()[name].size, 2)})
    cut, mended = prune(network, plan), prune(network, plan)
    for each, shift in ((network, 0.4), (cut, 0.4), (mended, bias)):
        for module in each.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, shift)
    budget = Budget(network, {"synops": 0.2}, {"synops": make_meter(network, "synops", images)})
    base, now = (float(count_operations(x, images)["sops"].sum()) for x in (network, mended))
    assert budget.met(plan) and (now > 0.8 * base) == told
    cfg = config("pruning=global", "pruning.budget=synops", "pruning.target_memory_saving=0.2")
    pipeline._tell_missed(SimpleNamespace(cfg=cfg, few_images=images), budget, plan, cut, mended)
    warnings = [message for message in caplog.messages if "less than" in message]
    assert len(warnings) == told
    for warning in warnings:
        assert f"saves {100 * (1 - now / base):.2f} % of synops, less than the 20 %" in warning
