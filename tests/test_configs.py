"""Every shipped config composes, and a wrong value is refused in one line that names it."""

import copy
import inspect
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from lightning import Trainer
from omegaconf import OmegaConf

from psvit.config import check_config
from psvit.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "local")
)
# packages of the config; the others change several of them at once
GROUPS = {option.partition("=")[0] for option in OPTIONS} - {"debug", "hparams_search", "hydra"}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=True)


def test_the_promised_options_are_there():
    assert {"model", "dataset", "training", "pruning", "finetune", "trainer", "logger"} <= GROUPS
    assert {
        "pruning=none",
        "pruning=uniform",
        "pruning=sensitivity",
        "pruning=fine_grained",
        "trainer=cpu",
        "trainer=gpu",
        "trainer=ddp",
        "logger=wandb",
        "logger=csv",
        "logger=none",
        "finetune=none",
        "finetune=default",
        "dataset=digits",
        "dataset=image_folder",
        "dataset=cifar10",
        "dataset=cifar100",
        "model=meta_spikeformer_15m",
    } <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_composes(config, option):
    group, _, name = option.partition("=")
    cfg = config(option)
    # every interpolation resolves, and the groups stay in their places
    assert set(plain(cfg)) > GROUPS
    if group in ("model", "dataset", "pruning"):
        # what a run is called by
        assert cfg[group].name == name
    if group not in ("trainer", "model"):
        check_config(cfg)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes(config, name, monkeypatch):
    # it says how to run it
    opening = (CONF / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    _, found, rest = opening.partition(f"python run.py experiment={name}")
    assert found
    overrides = [word for word in rest.splitlines()[0].split() if "=" in word]
    # also one for GPUs
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_config(config(f"experiment={name}", *overrides))


@pytest.mark.parametrize("name", ["cpu", "gpu", "ddp", "ddp_cpu"])
def test_a_trainer_is_one_that_lightning_makes(config, name):
    trainer = config(f"trainer={name}").trainer
    # what else `fit` takes out
    added = {"compile", "cuda_graphs"}
    assert set(trainer) - {"_target_"} - added <= set(inspect.signature(Trainer).parameters)
    assert trainer.accelerator == ("cpu" if "cpu" in name else "gpu")
    assert trainer.get("strategy") == ("ddp" if "ddp" in name else None)
    if name == "cpu":
        options = {name: value for name, value in trainer.items() if name not in added}
        assert isinstance(instantiate(options, logger=False), Trainer)


def test_loggers(config, tmp_path):
    assert plain(config("logger=none").logger) == {}
    logger = instantiate(config("logger=csv", f"paths.output_dir={tmp_path}").logger.csv)
    assert Path(logger.root_dir) == tmp_path / "csv"
    wandb = config("logger=wandb").logger.wandb
    assert get_class(wandb._target_).__name__ == "WandbLogger"
    # no network unless it is asked for
    assert wandb.offline is True
    assert list(config("logger=[wandb,csv]").logger) == ["wandb", "csv"]
    board = config("logger=tensorboard").logger.tensorboard
    assert get_class(board._target_).__name__ == "TensorBoardLogger"


def test_a_runs_name_follows_its_options(config):
    cfg = config("model=qkformer", "dataset=cifar10", "pruning=uniform")
    assert cfg.name == "qkformer-cifar10-uniform"


@pytest.mark.parametrize(
    "override",
    ["nonsense=1", "pruning=nonsense", "model=nonsense", "trainer=tpu", "logger=nonsense"]
    + [f"{group}.nonsense=1" for group in sorted(GROUPS)],
)
def test_hydra_refuses_what_it_does_not_know(config, override):
    with pytest.raises(HydraException, match="nonsense|trainer/tpu"):
        config(override)


@pytest.fixture(scope="module")
def changed(config):
    """A config of ``pruning=POLICY`` with one value changed as the command line changes it."""
    bases = {policy: config(f"pruning={policy}") for policy in ("uniform", "fine_grained")}
    parser = OverridesParser.create()

    def change(override):
        override = parser.parse_override(override)
        uniform = override.key_or_group == "pruning.ratio"
        cfg = copy.deepcopy(bases["uniform" if uniform else "fine_grained"])
        OmegaConf.update(cfg, override.key_or_group, override.value())
        return cfg

    return change


GOOD = [
    "seed=0",
    "seed=4294967295",
    "pruning.ratios=[0.01,0.99]",
    "pruning.target_memory_saving=0.9",
    "pruning.large_share=1",
    "pruning.kinds=[stream,head]",
    "pruning.protect=['stage1*']",
    "training.lr=1",
    "training.min_lr=0",
    "training.warmup_epochs=0",
    "training.label_smoothing=0",
    "training.weight_decay=0",
    "trainer.max_epochs=3",
    "finetune.epochs=0",
    "pruning.ratio=0",
    "pruning.ratio=0.999",
    "measure.repeats=0",
    "measure.mac_pj=0",
]


@pytest.mark.parametrize("override", GOOD)
def test_right_values_pass(changed, override):
    check_config(changed(override))


BAD = {
    "seed": ["-1", "1.5", "abc", "null", "true", "4294967296"],
    "pruning.ratio": ["1.0", "1", "-0.1", "abc", "null", "nan", "true", "[0.1]"],
    "pruning.ratios": ["[]", "0.3", "[0.3,1.0]", "[0.0]", "[-0.1]", "[abc]", "null", "[null]"],
    "pruning.target_memory_saving": ["0", "1", "-0.2", "22.4", "abc", "null"],
    "pruning.large_share": ["0", "1.1", "abc"],
    "measure.images": ["0", "-1", "1.5", "null"],
    "measure.batch_sizes": ["[]", "16", "[0]", "[1,a]", "null"],
    "measure.repeats": ["-1", "1.5", "null"],
    "measure.warmup": ["-1", "abc"],
    "measure.mac_pj": ["-1", "abc", "inf"],
    "measure.ac_pj": ["-0.1", "null"],
    "pruning.importance": ["l3", "null", "[l2]"],
    "pruning.kinds": ["[]", "hidden", "[nonsense]", "[hidden,nonsense]", "null", "[[hidden]]"],
    "pruning.protect": ["stage1", "null", "[3]", "[[a]]"],
    "pruning.name": ["nonsense", "null"],
    "training.lr": ["0", "-0.1", "abc", "null", "nan", "inf"],
    "training.weight_decay": ["-1", "abc"],
    "training.warmup_epochs": ["-1", "1.5", "abc"],
    "training.min_lr": ["-1", "abc"],
    "training.label_smoothing": ["-0.1", "1", "abc"],
    "finetune.epochs": ["-1", "1.5", "abc", "null"],
    "finetune.lr": ["0", "abc"],
    "training.mixup": ["-0.1", "abc", "null"],
    "training.ema_decay": ["1", "-0.1", "abc"],
    "training.keep": ["first", "null"],
    "training.teacher": ["3", "''"],
    "training.distill_weight": ["1.1", "-0.1", "abc"],
    "training.distill_temperature": ["0", "abc"],
    "finetune.teacher": ["3", "''"],
    "finetune.distill_weight": ["1.1", "-0.1", "abc"],
    "finetune.distill_temperature": ["0", "abc"],
    "trainer.max_epochs": ["0", "-1", "1.5", "null", "abc"],
    "trainer.check_val_every_n_epoch": ["0", "abc"],
    "trainer.accelerator": ["tpu", "auto", "null"],
    "trainer.devices": ["0", "-3", "[]", "two", "[a]", "1.5", "-1", "[0]"],
    "trainer.accumulate_grad_batches": ["0", "1.5"],
    "trainer.sync_batchnorm": ["1", "null"],
    "compile": ["maybe"],
    "trainer.compile": ["maybe"],
    "trainer.cuda_graphs": ["maybe"],
    "ckpt_path": ["3", "[]"],
    "ckpt_time_steps": ["0", "1.5", "[]"],
    "train": ["1", "no", "null"],
    "test": ["0", "null"],
    "objectives": ["accuracy", "[]", "[top1,nonsense]", "null"],
    "trainer.deterministic": ["always", "1.5", "null"],
    "pruning.sensitivity.groups": ["stage1", "[]", "[3]"],
    "pruning.sensitivity.method": ["guessed", "null"],
    "pruning.sensitivity.measured_rows": ["1", "2.5"],
    "pruning.sensitivity.adaptive": ["1", "null"],
    "pruning.sensitivity.tolerance": ["-1", "abc"],
    "pruning.sensitivity.confidence": ["0", "1"],
    # without a GPU
    "pruning.sensitivity.autocast": ["true", "1"],
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in BAD.items() for value in values]
)
def test_a_wrong_value_is_named(changed, option, value):
    with pytest.raises(UserError) as error:
        check_config(changed(f"{option}={value}"))
    message = str(error.value)
    assert message.startswith(f"{option}=") and "\n" not in message
    # the value as it was taken, then what would be right
    assert ": expected " in message
