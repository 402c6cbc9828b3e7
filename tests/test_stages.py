"""Stages on networks that were never trained: what is compared, noted, read and refused."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from psvit import networks, setup
from psvit.data import create_data
from psvit.decide import decide, make_budget, one_ratio_plan
from psvit.errors import UserError
from psvit.measure.accuracy import Tally
from psvit.networks import build_network, load_network
from psvit.pipeline import run
from psvit.pruning import allocation, checkpoint
from psvit.pruning.allocation import uniform_at
from psvit.pruning.recovery import recover
from psvit.resume import write_state
from psvit.reuse import Reuse
from psvit.setup import check_pruning
from psvit.stages import Stages, _taught_by


@pytest.fixture
def stages(config, tiny_run, tmp_path):
    def made(*overrides):
        cfg = config(*tiny_run, *overrides, "pruning.ratios=[0.25, 0.5]")
        data = create_data(cfg.dataset, cfg.seed)
        torch.manual_seed(0)
        network, _ = build_network(cfg, data, None)
        found = Stages(cfg, data, tmp_path, [])
        found.base = network
        return found

    return made


def plan_of(stages, network):
    ranking = stages.rank(network)
    return decide(stages, network, make_budget(stages, network, ranking), 1)


def test_what_was_made_with_other_roundings_is_not_taken(stages, monkeypatch, tmp_path):
    found, made = stages(f"paths.cache_dir={tmp_path}/cache"), []

    def ask(reuse):
        reuse.shared("base", ["psvit.files"], lambda folder: made.append(folder), seed=0)
        return len(made)

    assert ask(found.reuse) == ask(Reuse(found.cfg, found.data, tmp_path)) == 1
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    other = Reuse(found.cfg, found.data, tmp_path / "other")
    assert ask(other) == 2
    # ... but by a run that began with them: it goes on with what it has
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    write_state(tmp_path / "other", finished=False, loggers={}, arithmetic=other._arithmetic)
    assert ask(Reuse(found.cfg, found.data, tmp_path / "other")) == 2
    assert ask(Reuse(found.cfg, found.data, tmp_path / "third")) == 2


def test_a_teacher_is_its_weights_and_what_they_are_run_for(stages):
    teacher = stages().base
    same = copy.deepcopy(teacher)
    assert _taught_by(teacher) == _taught_by(same) and _taught_by(None) is None
    same.spec = {**teacher.spec, "time_steps": teacher.time_steps + 1}
    assert _taught_by(teacher) != _taught_by(same)
    with torch.no_grad():
        teacher.head.fc.bias += 1
    assert _taught_by(teacher)["weights"] != _taught_by(same)["weights"]


def test_a_share_of_too_few_batches_is_told_before_anything_is_trained(config, tiny_run, tmp_path):
    for option in ("limit_train_batches", "limit_val_batches", "overfit_batches"):
        cfg = config(*tiny_run, f"+trainer.{option}=0.01")
        with pytest.raises(UserError, match=rf"trainer\.{option}=0\.01: is less than one of"):
            run(cfg, tmp_path / option)


def test_a_cut_counts_from_the_network_that_was_cut(stages):
    found = stages("pruning=fine_grained")
    other = build_network(found.cfg, found.data, None)[0]
    # untrained networks are silent: their classifiers' biases are what they answer
    torch.nn.init.normal_(other.head.fc.bias)
    decision = SimpleNamespace(measure="loss", predicted=0.5)
    assert found.divergence(other).loss != found.divergence(found.base).loss
    # a later round: the network it cuts is not the base network, and nothing of it goes
    found.compare_prediction(decision, other, other, found.base)
    prediction = found.record.results["prediction"]
    assert prediction["measured"] == 0.0 and prediction["predicted"] == 0.5
    difference = found.divergence(found.base).loss - found.divergence(other).loss
    assert prediction["measured_after_recovery"] == difference


def test_a_run_that_goes_on_knows_how_its_table_was_made(stages, monkeypatch):
    options = ("pruning=fine_grained", "pruning.target_memory_saving=0.1")
    first = stages(*options)
    plan = plan_of(first, first.base).plan
    made = first.record.results["sensitivity"]
    assert made["sensitivity.csv"]["method"] == "measured"
    again = stages(*options)
    monkeypatch.setattr(Stages, "sensitivity", None)  # what is kept is not measured again
    assert plan_of(again, again.base).plan == plan
    assert again.record.results["sensitivity"] == made


def test_rows_may_stop_early(config, tiny_run, tmp_path):
    cfg = config(
        *tiny_run,
        "pruning=sensitivity",
        "pruning.ratios=[0.5]",
        "pruning.sensitivity.adaptive=true",
        "finetune=none",
        "logger=none",
        "report=tables",
    )
    summary = run(cfg, tmp_path)["sensitivity"]["sensitivity.csv"]
    assert summary["confidence_of_a_row"] == cfg.pruning.sensitivity.confidence
    assert 0.0 < summary["share_of_images_shown"] <= 1.0


@pytest.mark.parametrize(
    ("options", "met"),
    [
        # the grid's largest ratio saves 0.4 of this network
        (("pruning=fine_grained",), False),
        (("pruning=prioritized",), False),
        # ratios of one cut add up over rounds, and not every policy's are those of the grid
        (("pruning=fine_grained", "pruning.rounds=2"), True),
        (("pruning=global",), True),
        (("pruning=uniform",), True),
        # ... but the large groups alone hold too little
        (("pruning=uniform", "pruning.large_share=0.2"), False),
    ],
)
def test_a_target_is_refused_where_the_policy_cannot_reach_it(stages, options, met):
    found = stages(*options, "pruning.target_memory_saving=0.5")
    if met:
        check_pruning(found.cfg, found.data, found.base)
        return
    with pytest.raises(UserError, match=r"pruning\.target_memory_saving=0\.5: cannot be reached"):
        check_pruning(found.cfg, found.data, found.base)


@pytest.mark.parametrize(
    "option", ["pruning.importance=firing_rate", "pruning.sensitivity.method=estimated"]
)
def test_a_group_that_nothing_reads_is_told_before_training(stages, option, monkeypatch):
    found = stages("pruning=fine_grained", "pruning.calibration_images=64", option)
    check_pruning(found.cfg, found.data, found.base)
    groups = found.base.channel_groups()
    name, group = next((name, group) for name, group in groups.items() if group.silenced)
    groups[name] = replace(group, neurons=())
    monkeypatch.setattr(found.base, "channel_groups", lambda: groups)
    with pytest.raises(UserError, match=f"{name}: the group names neither consumers nor neurons"):
        check_pruning(found.cfg, found.data, found.base)


def test_the_most_that_large_groups_can_save_is_within_reach(stages):
    found = stages(
        "pruning=uniform",
        "pruning.large_share=0.2",
        "pruning.target_memory_saving=null",
        "pruning.max_accuracy_drop=50",
    )
    budget = make_budget(found, found.base, found.rank(found.base))
    names = setup.reach(found.cfg.pruning, found.base, found.rank(found.base))[1]
    _, plan = uniform_at(found.rank(found.base), budget, names)
    assert set(plan) == set(names)


def test_a_resource_of_which_nothing_can_be_saved_is_no_budget(stages, monkeypatch):
    found = stages(
        "pruning=fine_grained",
        "pruning.budget=latency",
        "pruning.target_memory_saving=null",
        "pruning.max_accuracy_drop=50",
    )
    # a network too small for its time to tell
    monkeypatch.setattr(allocation, "make_meter", lambda *_: lambda plan: 1.03 if plan else 1.0)
    with pytest.raises(UserError, match="pruning.budget=.*saves nothing of latency"):
        make_budget(found, found.base, found.rank(found.base))


def test_recordings_are_read_in_as_many_frames_as_the_network_has_steps(
    config, tiny_run, stages, tmp_path
):
    network = stages("model.time_steps=3", "pruning=fine_grained").base
    checkpoint.save(network, tmp_path / "base")
    for given, steps in (([], 3), (["ckpt_time_steps=6"], 6)):
        cfg = config(
            *tiny_run,
            "+dataset.frames=${model.time_steps}",
            "model.time_steps=4",
            f"ckpt_path={tmp_path}/base",
            *given,
        )
        assert load_network(cfg)[0].time_steps == cfg.dataset.frames == steps


def test_a_batch_that_is_shared_out_is_not_one_long_recording(config, tiny_run, monkeypatch):
    cfg = config("model=qkformer", "model.batch_as_time=true")
    data = create_data(cfg.dataset, cfg.seed)
    build_network(cfg, data, None)
    monkeypatch.setattr(networks, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"model\.batch_as_time=True: expected false"):
        build_network(cfg, data, None)


def test_no_candidate_is_mended_twice(config, tiny_run, tmp_path, monkeypatch):
    mended = []

    def counted(pruned, base, plan, *options):
        mended.append(tuple(sorted(plan.items())))
        return recover(pruned, base, plan, *options)

    monkeypatch.setattr("psvit.stages.recover", counted)
    cfg = config(
        *tiny_run,
        "pruning=budgeted",
        "pruning.ratios=[0.3,0.6]",
        "pruning.target_memory_saving=0.3",
        "pruning.calibration_images=64",
        "finetune=none",
        "logger=none",
        "report=tables",
    )
    rows = run(cfg, tmp_path)["rows"]
    # one step and two: both are tried, and the better one is the network of the table
    assert len(mended) >= 2 and len(set(mended)) == len(mended)
    assert rows[-1]["stage"] == "recovered"


def test_a_run_that_goes_on_has_the_same_network_of_one_ratio(stages, monkeypatch):
    options = ("pruning=global", "pruning.target_memory_saving=0.2")
    first = stages(*options)
    ranking = first.rank(first.base)
    plan = one_ratio_plan(first, ranking, make_budget(first, first.base, ranking))
    assert plan == uniform_at(ranking, make_budget(first, first.base, ranking))[1]
    again = stages(*options)
    # as another time would have it
    monkeypatch.setattr("psvit.pruning.allocation.uniform_at", None)
    assert one_ratio_plan(again, ranking, make_budget(again, again.base, ranking)) == plan


def test_the_uniform_curve_cuts_groups_that_are_not_analysed(stages):
    found = stages("pruning=sensitivity", "pruning.sensitivity.groups=[stage4*]")
    ranking = found.rank(found.base)
    assert all(name.startswith("stage4") for name in ranking.groups)
    one_ratio = setup.rank_one_ratio(found.cfg, found.data, found.base, ranking)
    whole = stages("pruning=sensitivity").rank(found.base)
    assert set(one_ratio.groups) == set(whole.groups) > set(ranking.groups)


def test_all_threads_are_all_again_behind_a_job_of_fewer(config, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("psvit.pipeline.ALL_THREADS", 3)
    options = (*tiny_run, "pruning=none", "logger=none", "report=tables")
    try:
        for threads, found in (("2", 2), ("null", 3)):
            run(config(*options, f"threads={threads}"), tmp_path / threads)
            assert torch.get_num_threads() == found
    finally:
        torch.set_num_threads(1)


def test_only_a_base_network_is_told_to_be_trained_longer(
    config, tiny_run, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(Tally, "guesses", True)
    options = ("pruning=uniform", "finetune=none", "logger=none", "report=tables", "train=false")
    torch.manual_seed(0)
    cfg = config(*tiny_run, *options, "ckpt_path=null")
    network, _ = build_network(cfg, create_data(cfg.dataset, cfg.seed), None)
    checkpoint.save(network, tmp_path / "base")
    rows = run(config(*tiny_run, *options, f"ckpt_path={tmp_path}/base"), tmp_path / "run")["rows"]
    told = [message for message in caplog.messages if "largest class" in message]
    assert len(rows) > 1 and len(told) == 1 and told[0].startswith("base is right")
