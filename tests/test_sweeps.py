"""Launchers, the search for values, and the sensitivity analysis as jobs: what they compose."""

import runpy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import OmegaConf

from psvit.data import create_data
from psvit.errors import UserError
from psvit.networks import build_network
from psvit.setup import rank_channels

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hydra_config():
    def composed(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=True)

    return composed


@pytest.fixture(scope="module")
def program():
    return runpy.run_path(str(ROOT / "run.py"))


@pytest.mark.parametrize("name", ["basic", "joblib", "submitit_local", "submitit_slurm", "slurm"])
def test_a_launcher_is_there(hydra_config, name):
    launcher = hydra_config(f"hydra/launcher={name}").hydra.launcher
    assert get_class(launcher._target_).__name__.endswith("Launcher")
    if name == "slurm":
        assert launcher.timeout_min > 60 and launcher.gpus_per_node == 1


def test_the_search_is_over_options_that_are_there(hydra_config):
    cfg = hydra_config("hparams_search=optuna")
    assert cfg.hydra.mode is RunMode.MULTIRUN and cfg.test is False
    assert len(cfg.objectives) == len(cfg.hydra.sweeper.direction)
    parser = OverridesParser.create()
    for name, values in cfg.hydra.sweeper.params.items():
        assert OmegaConf.select(cfg, name, default="absent") != "absent", name
        assert parser.parse_override(f"{name}={values}").is_sweep_override()


def test_an_experiment_is_named_with_and_without_a_plus(program):
    given = ["-m", "+experiment=a,b", "experiment=c", "+trainer.x=1", "name=+experiment=d"]
    expected = ["-m", "experiment=a,b", "experiment=c", "+trainer.x=1", "name=+experiment=d"]
    assert program["as_hydra_has_it"](given) == expected


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_network_of_ones_own_is_named_with_and_without_a_plus(hydra_config, program, sign):
    given = ["ckpt_path=RUN/base", f"{sign}model.module=my_network"]
    cfg = hydra_config(*program["as_hydra_has_it"](given))
    assert cfg.model.module == "my_network"


def test_a_search_may_keep_its_trials(tmp_path):
    """Optuna's database, of the versions that an installation brings."""
    import optuna

    for trials in (2, 4):
        study = optuna.create_study(
            storage=f"sqlite:///{tmp_path}/trials.db", study_name="x", load_if_exists=True
        )
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert len(study.trials) == trials


def test_what_a_search_is_told(program):
    row = {"name": "uniform", "top1": 90.0, "memory_mb": 1.5}
    objectives = program["objectives"]
    assert objectives(OmegaConf.create({"objectives": "top1"}), row) == 90.0
    assert objectives(OmegaConf.create({"objectives": ["memory_mb", "top1"]}), row) == [1.5, 90.0]


@pytest.mark.parametrize("option", ["hydra/launcher=joblib", "hydra/sweeper=optuna"])
def test_a_plugin_that_is_not_installed(hydra_config, program, option):
    group, _, name = option.partition("=")
    # what Hydra says without the plugin; those that are there it lists
    with pytest.raises(HydraException) as error:
        hydra_config(f"{group}=no_such")
    absent = MissingConfigException(str(error.value).replace("no_such", name))
    assert 'pip install -e ".[sweeps]"' in program["missing_plugin"](absent)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("hydra/launcher=jobli", " (did you mean hydra/launcher=joblib?)"),
        ("hydra/sweeper=optunaa", " (did you mean hydra/sweeper=optuna?)"),
        ("hydra/launcher=foo", ""),
        ("pruning=joblib", ""),
    ],
)
def test_a_misspelt_plugin_is_not_one_that_is_not_installed(
    hydra_config, program, capsys, option, hint
):
    with pytest.raises(HydraException) as error:
        hydra_config(option)
    program["tell"](error.value)
    line = capsys.readouterr().err.strip()
    assert "not installed" not in line
    assert line.endswith(hint) and ("did you mean" in line) == bool(hint)


def test_the_jobs_of_the_sensitivity_sweep_are_all_groups_and_ratios(hydra_config):
    cfg = hydra_config("experiment=sensitivity_sweep", "paths.output_dir=unset")
    data = create_data(cfg.dataset, cfg.seed)
    network, _ = build_network(cfg, data, None)
    parser = OverridesParser.create()

    def values(name):
        override = parser.parse_override(f"{name}={cfg.hydra.sweeper.params[name]}")
        return [
            parser.parse_override(f"x={text}").value() for text in override.sweep_string_iterator()
        ]

    ratios = [ratio for chosen in values("pruning.ratios") for ratio in chosen]
    assert ratios == list(cfg.pruning.ratios)
    whole = list(rank_channels(cfg, data, network).groups)
    parts = []
    for groups in values("pruning.sensitivity.groups"):
        cfg.pruning.sensitivity.groups = groups
        parts.extend(rank_channels(cfg, data, network).groups)
    assert parts == whole


def test_groups_that_are_not_there(config):
    cfg = config("pruning=sensitivity", "pruning.sensitivity.groups=[stage9*]")
    data = create_data(cfg.dataset, cfg.seed)
    network, _ = build_network(cfg, data, None)
    with pytest.raises(UserError, match=r"pruning.sensitivity.groups=stage9\*: matches none of"):
        rank_channels(cfg, data, network)
