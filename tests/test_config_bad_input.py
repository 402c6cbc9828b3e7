"""Values that cannot be right: each is refused in one line that names it, before anything is read.

The whole config is composed once; a row of the table changes one value of it.
"""

import copy
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import yaml
from main_job import RUN
from omegaconf import OmegaConf

from psvit.config import check_config
from psvit.config.sections import OPTIONS, SECTIONS, TRAINER
from psvit.data.options import check_options
from psvit.errors import UserError
from psvit.models import create_model
from psvit.training.trainer import OWN

# option=value -> a word of what would be right
WRONG = {
    "name=''": "a name",
    "tags=digits": "a list of names",
    "tags=[1]": "a list of names",
    "seed=-1": "from 0 to",
    "seed=1.5": "whole number",
    "seed=true": "whole number",
    "seed=4294967296": "4294967295",
    "threads=0": "at least 1",
    "threads=many": "at least 1",
    "threads=100000": "1024",
    "channels_last=1": "true or false",
    "print_config=maybe": "true or false",
    "train=0": "true or false",
    "test=null": "true or false",
    "ckpt_path=''": "a folder",
    "ckpt_time_steps=0": "at least 1",
    "pruning.sensitivity.mended=maybe": "true, false, or null",
    "paths.cache_dir=3": "null for no cache",
    "measure=null": "options, as measure.NAME=VALUE",
    "measure=5": "options",
    "paths=null": "options",
    "model=null": "options",
    "dataset.augment=null": "options",
    "pruning.sensitivity=null": "options",
    "trainer=3": "options",
    "model.module=os": "a file",
    "model.module=5": "dotted name",
    "trainer.max_epochs=0": "at least 1",
    "trainer.max_epochs=2.5": "whole number",
    "trainer.max_epochs=null": "whole number",
    "trainer.accelerator=tpu-pod": "cpu",
    "trainer.devices=0": "at least 1",
    "trainer.devices=all": "auto",
    "trainer.devices=2": "trainer=ddp",
    "pruning.target_saving=0.4": "names memory alone",
    "pruning.target_saving={macs: 0.4}": "expected macs in pruning.budget",
    "pruning.target_saving={memory: 0.4}": "pruning.target_memory_saving",
    "trainer.precision=8": "bf16-mixed",
    "trainer.precision=16-mixed": "expected bf16-mixed with trainer=cpu",
    "trainer.gradient_clip_val=-1": "above 0",
    "trainer.gradient_clip_val=0": "null",
    "trainer.log_every_n_steps=0": "at least 1",
    "trainer.check_val_every_n_epoch=0": "at least 1",
    "trainer.enable_model_summary=2": "true or false",
    # what Lightning would refuse, when there is something to train
    "trainer.foo=1": "no such argument",
    "trainer._target_=foo.Bar": "lightning.pytorch.Trainer",
    "trainer._target_=null": "lightning.pytorch.Trainer",
    "trainer._target_=os.system": "lightning.pytorch.Trainer",
    "trainer.max_steps=-5": "-1 (infinite steps)",
    "trainer.max_steps=0": "more than 0",
    "trainer.limit_train_batches=0": "more than 0",
    "trainer.limit_train_batches=0.0": "more than 0",
    "trainer.max_time=abc": "DD:HH:MM:SS",
    "trainer.val_check_interval=1000": "trainer.check_val_every_n_epoch",
    "trainer.val_check_interval=1.5": "(0, 1]",
    "trainer.fast_dev_run=-1": ">= 0",
    "trainer.overfit_batches=-1": "[0.0, 1.0]",
    "trainer.profiler=foo": "advanced",
    "trainer.callbacks=[1]": "no effect",
    "trainer.enable_checkpointing=false": "ModelCheckpoint",
    "training.lr=0": "above 0",
    "training.lr=-1e-3": "above 0",
    "training.lr=fast": "a number",
    "training.lr=.nan": "a number",
    "training.lr=.inf": "a number",
    "training.weight_decay=-0.1": "at least 0",
    "training.warmup_epochs=-1": "at least 0",
    "training.warmup_epochs=99": "less than trainer.max_epochs",
    "training.min_lr=1": "at most training.lr",
    "training.label_smoothing=1": "[0, 1)",
    "training.mixup=-1": "alpha",
    "training.cutmix=yes": "alpha",
    "training.ema_decay=1": "[0, 1)",
    "training.keep=worst": "best",
    "finetune.epochs=-1": "at least 0",
    "finetune.lr=null": "above 0",
    "finetune.distill_weight=2": "[0, 1]",
    "finetune.distill_temperature=0": "above 0",
    "finetune.distill_rates=-1": "at least 0",
    "pruning.name=magic": "budgeted",
    "pruning.uniform_importance=magic": "fisher",
    "pruning.ratios=[]": "(0, 1)",
    "pruning.ratios=0.5": "a list",
    "pruning.ratios=[0.5,1.0]": "(0, 1)",
    "pruning.ratios=[half]": "(0, 1)",
    "pruning.target_memory_saving=0": "(0, 1)",
    "pruning.target_memory_saving=22.4": "(0, 1)",
    "pruning.target_memory_saving=null": "pruning.max_accuracy_drop",
    "pruning.target_saving={speed: 0.3}": "memory",
    "pruning.budget=speed": "memory",
    "pruning.budget=[]": "memory",
    "pruning.budget=[memory,memory]": "each once",
    "pruning.max_accuracy_drop=-1": "[0, 100]",
    "pruning.rounds=0": "at least 1",
    "pruning.rounds=101": "at most 100",
    # memory would have run out behind all stages
    "measure.batch_sizes=[1,300000000]": "at most 4096",
    "pruning.importance=l7": "l2",
    "pruning.kinds=[]": "hidden",
    "pruning.kinds=[conv]": "hidden",
    "pruning.kinds=[hidden,hidden]": "each once",
    "pruning.protect=stage1": "patterns",
    "pruning.recovery=magic": "none",
    "pruning.ridge=-1": "at least 0",
    "pruning.calibration_images=0": "at least 1",
    "pruning.round_to=0": "at least 1",
    "pruning.min_keep=-1": "channels",
    "pruning.max_steps=0": "at least 1",
    "pruning.sensitivity.images=0": "null",
    "dataset.name=mnist": "digits",
    "dataset.image_size=0": "at least 1",
    "dataset.batch_size=-1": "at least 1",
    "dataset.num_workers=-1": "at least 0",
    # the machine would have hung, or run out of memory, after training
    "dataset.num_workers=100000": "at most",
    "dataset.image_size=1000000": "at most 8192",
    "dataset.crop_pct=0.0001": "above 16384",
    "dataset.val_fraction=1": "between 0 and 1",
    "dataset.mean=[0.5]": "three numbers",
    "dataset.std=[1,1,0]": "above 0",
    "dataset.interpolation=best": "bilinear",
    "dataset.crop_pct=0": "above 0",
    "dataset.root=/tmp": "expected null: scikit-learn",
    "dataset.augment.hflip=2": "between 0 and 1",
    "dataset.augment.random_resized_crop=[1,0.5]": "smallest",
    "model.time_steps=0": "at least 1",
    "model.num_heads=3": "divide",
    "model.image_size=8": "at least 16",
    "model.name=vgg": "meta_spikeformer",
}


@pytest.fixture(scope="module")
def composed(config):
    # every option that there is
    cfg = config("pruning=budgeted", "finetune=distill", "dataset.image_size=32")
    cfg.name, cfg.model.num_classes, cfg.model.in_channels = "run", 10, 3
    return cfg


def check(cfg):
    check_config(cfg)
    check_options(cfg.dataset)
    create_model(**OmegaConf.to_container(cfg.model, resolve=True))


def test_the_config_itself_is_right(composed):
    check(copy.deepcopy(composed))


@pytest.mark.parametrize("override", WRONG)
def test_a_value_that_cannot_be_right(composed, override):
    cfg = copy.deepcopy(composed)
    option, _, value = override.partition("=")
    OmegaConf.update(cfg, option, yaml.safe_load(value), force_add=True)
    with pytest.raises(UserError) as error:
        check(cfg)
    message = str(error.value)
    assert message.startswith(f"{option}=") and WRONG[override] in message
    assert "\n" not in message


@pytest.mark.parametrize("option", ["seed", "trainer", "trainer.compile", "dataset.augment"])
def test_what_was_taken_out(composed, option):
    cfg = copy.deepcopy(composed)
    OmegaConf.set_struct(cfg, False)
    section, _, name = option.rpartition(".")
    del (OmegaConf.select(cfg, section) if section else cfg)[name]
    with pytest.raises(UserError, match=f"^{option}=None: (is missing|expected options)"):
        check_config(cfg)


def test_every_option_of_the_config_is_asked_for(composed):
    parts = {section for section in SECTIONS if "." not in section}
    assert parts | set(OPTIONS) == set(composed)
    # the others are Lightning's to leave out
    assert set(OWN) <= set(TRAINER) <= set(composed.trainer)


def test_a_right_trainer_is_seen_through_in_silence(composed, capfd, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    cfg = copy.deepcopy(composed)
    trainer = {"devices": 2, "strategy": "ddp", "max_time": "00:01:00:00", "fast_dev_run": True}
    trainer["use_distributed_sampler"] = False
    for name, value in trainer.items():
        OmegaConf.update(cfg, f"trainer.{name}", value, force_add=True)
    check_config(cfg)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """``python run.py`` in this process: exit code and what it tells."""

    def call(*overrides):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr("sys.argv", [str(RUN), f"hydra.run.dir={tmp_path}/run", *overrides])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RUN), run_name="__main__")
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("pruning.target_memory_savin=0.3", "pruning.target_memory_saving"),
        ("prunning=uniform", "pruning"),
        ("pruning=fin_grained", "pruning=fine_grained"),
        ("experiment=cifar10_smal", "experiment=cifar10_small"),
        ("+experiment=cifar10_smal", "experiment=cifar10_small"),
        # an option of another choice than the default one
        ("finetune.distil_weight=0.5", "finetune.distill_weight"),
        ("training.max_epochs=3", "trainer.max_epochs"),
    ],
)
def test_what_was_meant_is_told(command, override, meant):
    code, error = command("finetune=distill", override)
    (line,) = error.splitlines()
    assert code == 2 and line.endswith(f" (did you mean {meant}?)")


@pytest.mark.parametrize("value", ["null", "3", "digits,null"])
@pytest.mark.parametrize("group", ["dataset", "debug"])
def test_a_group_takes_a_choice(command, group, value):
    code, error = command(f"{group}={value}")
    (line,) = error.splitlines()
    assert code == 2 and line.startswith(f"{group}={value}: expected one of ")


@pytest.mark.parametrize("option", ["xyzzyxyzzy", "training.foo", ""])
def test_nothing_is_made_up(command, option):
    code, error = command(f"{option}=3")
    (line,) = error.splitlines()
    assert code == 2 and option in line
    assert "did you mean" not in line and "expected one of" not in line


@pytest.mark.parametrize("value", ["/tmp/a(1)", "/tmp/a=b", '/tmp/a "b" (c)', "it's (so)", "a: {b"])
def test_how_to_quote_is_told_as_a_shell_and_hydra_read_it(command, config, value):
    code, error = command(f"dataset.root={value}")
    (line,) = error.splitlines()
    assert code == 2 and line.startswith(f"dataset.root={value}: ")
    (argument,) = shlex.split(re.search(r" \(put the value in quotes: (.+)\)$", line)[1])
    assert config(argument).dataset.root == value


@pytest.mark.parametrize("given", ["resume=/tmp/a(1)", "dataset=a(1)"])
def test_how_to_quote_is_told_of_what_is_read_before_hydra(command, given):
    code, error = command(given)
    (line,) = error.splitlines()
    name, _, value = given.partition("=")
    assert code == 2 and line.startswith(f"{given}: ") and f"'{name}=\"{value}\"'" in line


@pytest.mark.parametrize("given", ["tags=[a", "name", "na[me=3", "name='a"])
def test_quotes_are_told_of_only_where_they_help(command, given):
    code, error = command(given)
    (line,) = error.splitlines()
    assert code == 2 and given in line and "quotes" not in line


def test_a_slip_of_the_pen_waits_for_neither_lightning_nor_timm():
    # what Hydra imports before the first check, and the check itself
    code = (
        "import sys, psvit.report.multirun, psvit.config; "
        "print(sorted({'lightning', 'timm', 'wandb', 'torchvision'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
