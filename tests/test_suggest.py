"""Options that no config has, of files and of ``+``, are refused with the name meant."""

import shutil

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException

from psvit.config import check_config
from psvit.errors import UserError
from psvit.suggest import CONF, check_choices, check_files, choices, did_you_mean, without_append


@pytest.fixture
def conf(tmp_path):
    """A copy of conf/, to write into."""
    shutil.copytree(CONF, tmp_path / "conf")
    return tmp_path / "conf"


def write(conf, values, name="local/default"):
    path = conf / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# @package _global_\n{yaml.safe_dump(values)}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeed": 3}, r"seeed=3: .*\(did you mean seed\?\)"),
        ({"dataset": {"rot": "/x"}}, r"dataset\.rot=/x: .*\(did you mean dataset\.root\?\)"),
        # Lightning's class would be asked only when a training begins
        ({"trainer": {"devises": 2}}, r"trainer\.devises=2: .*mean trainer\.devices\?"),
        ({"pruning": {"sensitivity": {"image": 3}}}, r"image=3: .*pruning\.sensitivity\.images\?"),
        ({"model": {"colour": 1}}, r"model\.colour=1: .*no config has it$"),
        ({"dataset": "imagenet"}, r"dataset=imagenet: .*`- override /dataset: imagenet`"),
    ],
)
def test_an_option_that_no_config_has(conf, values, message):
    write(conf, values)
    with pytest.raises(UserError, match=message) as error:
        check_files([], conf)
    assert "conf/local/default.yaml" in str(error.value)
    # an experiment's likewise, but only where it is chosen
    (conf / "local/default.yaml").unlink()
    write(conf, values, "experiment/mine")
    check_files(["experiment=cifar10_small"], conf)
    with pytest.raises(UserError, match=message):
        check_files(["seed=1", "experiment=cifar10_small,mine"], conf)


@pytest.mark.parametrize(
    "values",
    [
        {"threads": 4, "hydra": {"run": {"dir": "x"}}, "defaults": [{"override /trainer": "gpu"}]},
        # of a choice that is not the default one; of the class that a config is made into
        {"pruning": {"ratio": 0.3}, "trainer": {"limit_val_batches": 2}},
        {"pruning": {"target_saving": {"macs": 0.2}}},
        {"model": {"module": "my_network", "colour": 1}},
        None,
    ],
)
def test_what_there_is_may_be_set(conf, values):
    write(conf, values)
    check_files([], conf)


def test_every_experiment_sets_what_there_is():
    files = sorted((CONF / "experiment").glob("*.yaml"))
    assert files
    check_files([f"experiment={','.join(path.stem for path in files)}"])


@pytest.mark.parametrize(
    ("added", "meant"),
    [
        ("++pruning.rond_to=4", "pruning.round_to"),
        ("+pruning.sensitivity={image: 4}", "pruning.sensitivity.images"),
        ("+training.max_epochs=4", "trainer.max_epochs"),
        ("+dataset.augment.flip=4", "dataset.augment.hflip"),
        ("+paths.cash_dir=4", "paths.cache_dir"),
        ("+prunning=4", "pruning"),
        ("+pruning.foo=4", None),
        ("+pruning.sensitivity.foo=4", None),
        ("+finetune.foo=4", None),
        ("+training.foo=4", None),
        ("+dataset.foo=4", None),
        ("+measure.foo=4", None),
        ("+foo=4", None),
        # what Hydra alone reads
        ("+defaults=4", None),
    ],
)
def test_an_option_that_is_added_and_that_nothing_reads(config, added, meant):
    option = added.strip("+").replace("={image: 4}", ".image=4")
    hint = f" (did you mean {meant}?)" if meant else ""
    with pytest.raises(UserError) as error:
        check_config(config(added))
    assert str(error.value) == f"{option}: no config has it{hint}"


@pytest.mark.parametrize(
    "added",
    [
        "+trainer.max_steps=9",
        "+trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler}",
        "+model.colour=1",
        "+logger.wandb.entity=me",
        "++pruning.round_to=4",
        # of another choice of its group, of an option that is null elsewhere
        "+pruning.ratio=0.3",
        "+dataset.frames=4",
        "+pruning.sensitivity={images: 8}",
        "++pruning.target_saving={macs: 0.2}",
    ],
)
def test_what_may_be_added(config, added):
    cfg = config("pruning.budget=[memory,macs]", added)
    check_config(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["+logger.csv.name=x"],
            "csv={'name': 'x'}: expected it to be chosen: 'logger=[wandb,csv]'",
        ),
        (
            ["logger=none", "+logger.csv.name=x"],
            "csv={'name': 'x'}: expected it to be chosen: logger=csv",
        ),
        (
            ["debug=limit", "+logger.wandb.offline=false"],
            "wandb={'offline': False}: expected it to be chosen: logger=wandb",
        ),
        (
            ["+logger.wanb=3"],
            "wanb=3: expected a logger that is chosen: logger=csv, tensorboard, wandb",
        ),
    ],
)
def test_options_of_a_logger_that_is_not_chosen(config, options, message):
    with pytest.raises(UserError) as error:
        check_config(config(*options))
    assert str(error.value) == f"logger.{message}"


def refusal(*options):
    """Hydra's error at options of the command line, given as they are."""
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(ConfigCompositionException) as error,
    ):
        compose("config", list(options))
    return error.value


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("trainer.epochs", "trainer.max_epochs"),
        ("training.epochs", "trainer.max_epochs"),
        ("epochs", "trainer.max_epochs"),
        ("finetune.epoch", "finetune.epochs"),
        ("training.learning_rate", "training.lr"),
        ("model.foo", None),
    ],
)
def test_an_option_of_the_command_line_that_no_config_has(option, meant):
    error = refusal(f"{option}=3")
    assert f"+{option}=3" in str(error)
    # which is refused, as the tests above have it
    assert without_append(error).strip() == f"Could not override '{option}'."
    assert did_you_mean(error, []) == (f" (did you mean {meant}?)" if meant else "")


@pytest.mark.parametrize(("wrong", "meant"), [("cvs", "did you mean csv? "), ("xyzzy", "")])
def test_what_a_list_of_choices_was_to_name(wrong, meant):
    given = [f"logger=[wandb,{wrong}]"]
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.raises(MissingConfigException) as error,
    ):
        compose("config", given)
    there = "logger has csv, none, tensorboard, wandb)"
    assert did_you_mean(error.value, given) == f" ({meant}{there}"


def test_advice_that_is_right_is_left():
    error = refusal("trainer.max_steps=1")
    assert without_append(error) == str(error)


@pytest.mark.parametrize(
    ("choice", "option", "owners"),
    [
        ("pruning=budgeted", "pruning.ratio", "pruning=uniform"),
        ("finetune=none", "finetune.lr", "finetune=default, finetune=distill, finetune=imagenet"),
    ],
)
def test_an_option_of_another_choice_is_told_with_it(choice, option, owners):
    error = refusal(choice, f"{option}=0.1")
    assert without_append(error).strip() == f"Could not override '{option}'."
    assert did_you_mean(error, [choice]) == f" (an option of {owners})"


@pytest.mark.parametrize("given", ["--config-dir={}", "--config-dir {}", "-cd {}"])
def test_a_network_of_ones_own_has_its_own_options(tmp_path, given):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/my_network.yaml").write_text("module: mine\nname: mine\nbreadth: 4\n")
    arguments = [*given.format(tmp_path).split(), "model=my_network"]
    error = refusal("model.breadht=1")
    assert did_you_mean(error, arguments) == " (did you mean model.breadth?)"
    (line,) = [each for each in choices(arguments).splitlines() if each.startswith("model: ")]
    assert "my_network" in line and "my_network" not in choices([])


def test_the_groups_of_the_help_are_those_that_can_be_chosen():
    shown = dict(line.split(": ") for line in choices([]).splitlines())
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    named = {name for each in defaults if isinstance(each, dict) for name in each}
    assert shown.keys() == {name for name in named if " " not in name}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for group, names in shown.items():
            assert names.split(", ") == sorted(loader.get_group_options(group))


@pytest.mark.parametrize("value", ["null", "3", "[]", "true"])
def test_a_group_takes_choices_and_no_values(value):
    with pytest.raises(UserError) as error:
        check_choices(["seed=1", f"logger={value}"])
    expected = "one of csv, none, tensorboard, wandb; left out, it is the default"
    assert str(error.value) == f"logger={value}: expected {expected}"


@pytest.mark.parametrize("value", ["none", "[wandb,csv]", "csv,wandb", ""])
def test_a_groups_choices_are_taken(value):
    check_choices([f"logger={value}", "dataset.batch_size=3"])
