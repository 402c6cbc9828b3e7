"""Values that are right alone and wrong beside others are refused in one line that names one."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from psvit.config import check_config
from psvit.config.unused import tell_unused
from psvit.config.values import CHECKS
from psvit.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{group}={path.stem}"
    for group in ("pruning", "trainer")
    for path in (CONF / group).glob("*.yaml")
)

TOGETHER = [
    (["training.warmup_epochs=3", "trainer.max_epochs=3"], "less than trainer.max_epochs=3"),
    (["training.min_lr=0.002", "training.lr=0.001"], "at most training.lr=0.001"),
    (["finetune.warmup_epochs=3", "finetune.epochs=3"], "less than finetune.epochs=3"),
    (["finetune.min_lr=0.0005", "finetune.lr=0.0001"], "at most finetune.lr=0.0001"),
    (
        ["trainer.check_val_every_n_epoch=4", "trainer.max_epochs=3", "training.keep=best"],
        "at most trainer.max_epochs=3",
    ),
    (
        ["trainer.check_val_every_n_epoch=4", "finetune.epochs=3", "finetune.keep=best"],
        "at most finetune.epochs=3",
    ),
    (["+trainer.limit_val_batches=0", "training.keep=best"], "more than 0, as training.keep=best"),
    (
        ["+trainer.limit_val_batches=0.0", "finetune.keep=best"],
        "more than 0, as finetune.keep=best",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), TOGETHER)
def test_values_that_are_wrong_together(config, overrides, expected):
    with pytest.raises(UserError, match=f"{overrides[0].lstrip('+')}: expected {expected}"):
        check_config(config(*overrides))
    # each alone is right
    for override in overrides:
        check_config(config(override))


def test_a_local_config_that_sets_nothing(config):
    with pytest.raises(UserError, match="conf/local/default.yaml=.*threads.*@package _global_"):
        check_config(config("+local.threads=4"))


def test_no_recipe_for_the_epochs(config):
    with pytest.raises(UserError, match="finetune.epochs=1: .*finetune=default"):
        check_config(config("finetune=none", "finetune.epochs=1"))


def test_epochs_are_limited_where_there_is_a_recipe_whatever_the_tags(config):
    cfg = config("debug=limit", "finetune=none", "tags=[mine]")
    check_config(cfg)
    assert cfg.finetune == {"epochs": 0} and cfg.tags == ["mine"]
    assert config("debug=limit", "finetune=imagenet").finetune.epochs == 2
    assert config("finetune=none", "experiment=cifar10_small").finetune.epochs == 0
    # of several choices the last one holds
    assert config("debug=[fdr,limit]", "finetune=[default,distill]").finetune.epochs == 2
    for options in (["debug=limit"], ["tags=[debug]"]):
        with pytest.raises(UserError, match="finetune.epochs=3: expected 0 with finetune=none"):
            check_config(config(*options, "finetune=none", "finetune.epochs=3"))


def test_a_schedule_that_is_not_used_is_not_checked(config):
    check_config(config("finetune.epochs=0", "finetune.warmup_epochs=3", "finetune.min_lr=1"))
    check_config(config("ckpt_path=folder", "trainer.max_epochs=1", "training.warmup_epochs=2"))


def test_every_check_is_of_an_option_that_some_config_has(config):
    options = [config(choice) for choice in CHOICES]
    for name in CHECKS:
        found = [OmegaConf.select(cfg, name, default="absent") for cfg in options]
        assert any(value != "absent" for value in found), name


@pytest.mark.parametrize("debug", sorted(path.stem for path in (CONF / "debug").glob("*.yaml")))
@pytest.mark.parametrize(
    "option",
    [*(f"experiment={name}" for name in EXPERIMENTS), "finetune=imagenet", "finetune=none"],
)
def test_debugging_serves_every_experiment(config, monkeypatch, debug, option):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_config(config(f"debug={debug}", option, "dataset.root=folder"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["pruning.target_memory_saving=null"], "target_memory_saving=None: .*save of memory"),
        (
            ["pruning.target_memory_saving=null", "pruning.budget=[memory,macs]"]
            + ["pruning.target_saving=0.3"],
            "target_memory_saving=None: .*save of memory",
        ),
        (["pruning=uniform", "pruning.rounds=2"], "rounds=2: expected 1 with a fixed"),
        (["trainer=ddp_cpu", "trainer.strategy=auto"], "devices=2: .*ddp"),
        (["finetune.teacher=folder"], "teacher=folder: .*finetune.distill_weight"),
        (["training.teacher=folder"], "training.teacher=folder: .*training.distill_weight"),
        (["training.distill_weight=0.5"], "training.distill_weight=0.5: .*training.teacher"),
        (
            ["finetune=distill", "finetune.teacher=folder", "finetune.distill_rates=1"],
            "teacher=folder: .*null with finetune.distill_rates",
        ),
    ],
)
def test_what_nothing_would_follow(config, options, expected):
    with pytest.raises(UserError, match=expected):
        check_config(config(*options))
    # as much as the accuracy allows
    check_config(config("pruning.target_memory_saving=null", "pruning.max_accuracy_drop=1"))


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there(config, monkeypatch, accelerator):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=f"trainer.accelerator={accelerator}: no GPU"):
        check_config(config(f"trainer.accelerator={accelerator}"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_config(config(f"trainer.accelerator={accelerator}"))


@pytest.mark.parametrize("option", ["trainer=cpu", "trainer=gpu", "trainer.devices=2"])
def test_a_strategy_without_what_belongs_to_it(config, monkeypatch, option):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError) as error:
        check_config(config(option, "+trainer.strategy=ddp"))
    assert str(error.value) == "trainer.strategy=ddp: expected trainer=ddp or ddp_cpu"
    for choice in ("ddp", "ddp_cpu"):
        check_config(config(f"trainer={choice}"))
    with pytest.raises(UserError, match="sampler=True: expected false with trainer.strategy=ddp"):
        check_config(config("trainer=ddp", "trainer.use_distributed_sampler=true"))


def test_sixteen_bits_that_a_processor_does_not_mix(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_config(config("trainer=gpu", "trainer.precision=16-mixed"))
    check_config(config("trainer=cpu", "trainer.precision=bf16-mixed"))
    with pytest.raises(UserError, match="precision=16-mixed: expected bf16-mixed with trainer=cpu"):
        check_config(config("trainer=ddp_cpu", "trainer.precision=16-mixed"))


@pytest.mark.parametrize("devices", ["3", "[0,2]"])
def test_gpus_beyond_those_that_are_there(config, monkeypatch, devices):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"trainer.devices=.*: this machine has 2"):
        check_config(config("trainer=ddp", f"trainer.devices={devices}"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    check_config(config("trainer=ddp", f"trainer.devices={devices}"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["trainer=cpu"], "trainer=gpu"),
        (["trainer=ddp"], "one device"),
        (["trainer=gpu", "trainer.compile=true"], "compile=false"),
        (["trainer=gpu", "trainer.accumulate_grad_batches=2"], "batches=1"),
        (["trainer=gpu", "finetune.distill_rates=1"], "finetune.distill_rates=0"),
    ],
)
def test_what_a_graph_cannot_do(config, monkeypatch, options, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=f"cuda_graphs=True: expected false, or .*{expected}"):
        check_config(config("trainer.cuda_graphs=true", *options))
    check_config(config(*options))
    check_config(config("trainer=gpu", "trainer.cuda_graphs=true"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["pruning.recovery=bn"], "least_squares or both"),
        (["pruning.recovery=both", "pruning.sensitivity.method=estimated"], "estimated"),
    ],
)
def test_rows_are_mended_where_there_is_something_to_mend_them_with(config, options, expected):
    options = ["pruning=fine_grained", "pruning.sensitivity.mended=true", *options]
    with pytest.raises(UserError, match=f"pruning.sensitivity.mended=True: .*{expected}"):
        check_config(config(*options))
    check_config(config(*options, "pruning.sensitivity.mended=false"))


def test_options_without_effect_are_told(config, caplog):
    caplog.set_level("INFO")
    options = ["trainer.max_epochs=20", "training.lr=0.1", "finetune.epochs=9", "seed=1"]
    tell_unused(config(*options), options)
    tell_unused(config("ckpt_path=folder", "train=false", "finetune=none"), ["finetune=none"])
    assert not caplog.messages
    tell_unused(config(*options, "ckpt_path=folder"), [*options, "ckpt_path=folder"])
    told = "as ckpt_path names a trained network: trainer.max_epochs=20, training.lr=0.1"
    assert caplog.messages == [f"without effect, {told}"]
    tell_unused(config(*options, "ckpt_path=folder", "train=false"), options)
    told = "as train=false trains nothing: finetune.epochs=9"
    assert caplog.messages[2:] == [f"without effect, {told}"]
