"""Choices and options that do not exist, and the name that was meant."""

import difflib
import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
)
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
NO_OPTION = re.compile(r"Could not override '([^']+)'|'([^']+)' does not exist")
# Hydra loads each of a list of choices, and finds one that stands alone
NO_CHOICE = re.compile(r"Could not (?:find|load) '(.+)/([^/']+)'")
# what Hydra adds to an option or a group that it does not find
ADVICE = re.compile(r"\nTo append to your .*")
# names that these have elsewhere, and the sections where they are looked for
USUAL = {"epochs": "trainer.max_epochs", "lr": "training.lr", "learning_rate": "training.lr"}
OF_TRAINING = ("", "train", "trainer", "training")
# of what the program reads itself; a model's and the Trainer's options may be left to their classes
TAKEN_OUT = re.compile(r"~((?:dataset|training|pruning|finetune|measure)\.[^=]+)")
# files that set options of any group, which Hydra merges without a look at their names
LOCAL, EXPERIMENT = "local/default.yaml", "experiment"
# what Hydra itself reads
HYDRAS = ("defaults", "hydra")
# whose options the classes know that they are made into: a network of the user's own, Lightning's
OF_CLASSES = ("model", "trainer", "logger")
# libyaml's is ten times as fast, where it is there
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_choices(arguments: Sequence[str]) -> None:
    """Raise a UserError for a group that is given a value in place of a choice, ``dataset=null``,
    and for an option that is taken out, ``~dataset.batch_size``.

    Hydra refuses the one with a traceback and without its name, and takes the other.
    """
    for argument in arguments:
        if taken_out := TAKEN_OUT.match(argument):
            reason = "~ takes it out, and it has to be there: expected a value"
            raise UserError(taken_out[1], None, reason)
        name, _, value = argument.partition("=")
        if "=" in argument and not name:
            raise UserError(name, value, "expected the name of an option before the =")
        if not (CONF / name).is_dir() or not value:
            continue
        given = OverridesParser.create().parse_overrides([argument])[0].value()
        jobs = given.list if isinstance(given, ChoiceSweep) else [given]
        if any(each in (None, []) or isinstance(each, (bool, int, float)) for each in jobs):
            choices = sorted(path.stem for path in (CONF / name).glob("*.yaml"))
            raise UserError(
                name, value, f"expected one of {', '.join(choices)}; left out, it is the default"
            )


def check_files(arguments: Sequence[str], conf: Path = CONF) -> None:
    """Raise a UserError for an option that conf/local or an experiment sets, and no config has.

    Args:
        arguments: the command line, which names experiments.
        conf: the folder of configs.
    """
    chosen = [a.partition("=")[2].split(",") for a in arguments if a.startswith(f"{EXPERIMENT}=")]
    names = [LOCAL, *(f"{EXPERIMENT}/{name}.yaml" for choice in chosen for name in choice)]
    for name in names:
        if (conf / name).is_file():
            given = _read(conf / name)
            # a network of the user's own has options of its own
            own = ("model",) if "module" in (given.get("model") or {}) else ()
            given = {key: value for key, value in given.items() if key not in (*HYDRAS, *own)}
            _check_names(given, _known(conf), f"conf/{name}")


def check_options(cfg: DictConfig) -> None:
    """Raise a UserError for an option that no config has: ``+`` and ``++`` add any to a config.

    Args:
        cfg: the composed config. An option of another choice than its group's is taken.
    """
    given = OmegaConf.to_container(cfg)
    # Hydra's own section is there where it was asked for
    others = ("hydra", *OF_CLASSES)
    ours = {name: value for name, value in given.items() if name not in others}
    _check_names(ours, _known(CONF))


def _read(path: Path) -> dict[str, Any]:
    found = yaml.load(path.read_text(), _LOADER)  # noqa: S506  a safe one
    return found if isinstance(found, dict) else {}


@functools.cache
def _known(conf: Path) -> dict[str, Any]:
    """The options of every choice of every group, one inside the other."""
    known: dict[str, Any] = {}
    for path in sorted(conf.rglob("*.yaml")):
        group, *_ = path.relative_to(conf).parts
        if group in ("local", EXPERIMENT, "hydra"):
            continue
        found = {name: value for name, value in _read(path).items() if name not in HYDRAS}
        everywhere = path.parent == conf or "# @package _global_" in path.read_text()
        _add(known, found if everywhere else {group: found})
    return known


def _add(known: dict[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            if not isinstance(known.get(name), dict):
                known[name] = {}
            _add(known[name], value)
        else:
            known.setdefault(name, value)


def _check_names(given: Mapping[str, Any], known: dict[str, Any], file: str = "") -> None:
    options = list(_names(known))

    def check(given: Mapping[str, Any], known: dict[str, Any], prefix: str = "") -> None:
        for name, value in given.items():
            option = f"{prefix}{name}"
            if name not in known:
                if _takes(known.get("_target_"), str(name)):
                    continue
                meant = _nearest(option, options)
                hint = f" (did you mean {meant}?)" if meant else ""
                told = f"{file} sets it, and " if file else ""
                raise UserError(option, value, f"{told}no config has it{hint}")
            if not isinstance(known[name], dict):
                continue
            if isinstance(value, dict):
                # what an object takes is checked, not what its values are made of
                if "_target_" not in known:
                    check(value, known[name], f"{option}.")
            elif not prefix:
                right = f"choose one under `defaults:` with `- override /{option}: {value}`"
                raise UserError(option, value, f"{file} sets a group to a value; {right}")

    check(given, known)


def _takes(target: str | None, name: str) -> bool:
    """Whether the class that a config is made into has an argument that the config leaves out."""
    if target is None:
        return False
    parameters = inspect.signature(get_class(target)).parameters
    return name in parameters or any(
        each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()
    )


def did_you_mean(error: Exception, arguments: Sequence[str]) -> str:
    """ " (did you mean …?)" behind an error of Hydra's, or "" where nothing is near.

    Args:
        error: a name that does not exist.
        arguments: the command line, whose other choices say which options there are.
    """
    text = str(error)
    if isinstance(error, MissingConfigException) and (found := NO_CHOICE.search(text)):
        group, choice = found.groups()
        # of a choice in a list Hydra tells no others
        there = error.options or sorted(_choices(arguments).get(group, ()))
        nearest = difflib.get_close_matches(choice, there, 1)
        if error.options or not there:
            return f" (did you mean {group}={nearest[0]}?)" if nearest else ""
        first = f"did you mean {nearest[0]}? " if nearest else ""
        return f" ({first}{group} has {', '.join(there)})"
    if isinstance(error, ConfigCompositionException) and (found := NO_OPTION.search(text)):
        option = found[1] or found[2]
        if owners := _owners(option):
            return f" (an option of {', '.join(owners)})"
        meant = _nearest(option, _options(arguments))
        return f" (did you mean {meant}?)" if meant else ""
    return ""


def _owners(option: str) -> list[str]:
    """The choices of a group that have an option, as ``pruning=uniform``."""
    group, _, name = option.partition(".")
    files = sorted((CONF / group).glob("*.yaml")) if name and group not in OF_CLASSES else []
    return [f"{group}={path.stem}" for path in files if name in _with_defaults(path)]


def _with_defaults(path: Path) -> set[str]:
    """The options of a choice, those of the choices of its group that it begins with among them."""
    found = _read(path)
    named = [each for each in found.get("defaults", []) if isinstance(each, str)]
    others = [path.parent / f"{each.partition('@')[0]}.yaml" for each in named]
    return set(_names(found)).union(*(_with_defaults(each) for each in others if each.is_file()))


def without_append(error: Exception) -> str:
    """An error's text, without Hydra's advice to add an option with ``+`` that no config has."""
    text = str(error)
    if not isinstance(error, ConfigCompositionException) or not (found := NO_OPTION.search(text)):
        return text
    option = found[1] or found[2]
    given: Any = None
    for name in reversed(option.split(".")):
        given = {name: given}
    try:
        if _owners(option):
            return ADVICE.sub("", text)
        _check_names(given, _known(CONF))
    except UserError:
        return ADVICE.sub("", text)
    return text


def choices(arguments: Sequence[str]) -> str:
    """The groups of options and their choices, a line each, as ``--help`` shows them.

    Hydra's own list takes every folder in ``conf/`` that holds a YAML file for a group.

    Args:
        arguments: the command line, whose ``--config-dir`` may have choices of the user's own.
    """
    found = _choices(arguments)
    return "\n".join(f"{group}: {', '.join(sorted(found[group]))}" for group in sorted(found))


def _choices(arguments: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for conf in (CONF, *_config_dirs(arguments)):
        for path in conf.glob("*/*.yaml"):
            group = path.parent.name
            if (CONF / group).is_dir() and group not in ("local", "hydra"):
                found.setdefault(group, set()).add(path.stem)
    return found


def _config_dirs(arguments: Sequence[str]) -> list[Path]:
    """The folders of configs that a command line names besides ``conf/``."""
    found = [value for name, value in pairwise(arguments) if name in ("--config-dir", "-cd")]
    found += [each.partition("=")[2] for each in arguments if each.startswith("--config-dir=")]
    return [Path(each).absolute() for each in found]


def _nearest(option: str, options: Sequence[str]) -> str | None:
    """The option that was meant, or None.

    Of two names in one section what they share is no likeness: ``training.foo`` is not near
    ``training.lr``.
    """
    section, _, last = option.rpartition(".")
    if section in OF_TRAINING and USUAL.get(last) in options:
        return USUAL[last]
    beside = {
        each.rpartition(".")[2]: each for each in options if each.rpartition(".")[0] == section
    }
    if not section or not beside:
        found = difflib.get_close_matches(option, options, 1)
        return found[0] if found else None
    # the right name in a wrong section
    elsewhere = [each for each in options if each.endswith(f".{last}")]
    if found := difflib.get_close_matches(option, elsewhere, 1):
        return found[0]
    found = difflib.get_close_matches(last, beside, 1)
    return beside[found[0]] if found else None


def _options(arguments: Sequence[str]) -> list[str]:
    """The options and groups that there are with the groups' choices of the command line."""
    given = (each for each in arguments if "=" in each)
    chosen = [each for each in given if (CONF / each.split("=")[0].lstrip("+")).is_dir()]
    places = ",".join(f"'file://{folder}'" for folder in _config_dirs(arguments))
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*chosen, f"hydra.searchpath=[{places}]"])
    except HydraException:
        return []
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    return [*groups, *_names(OmegaConf.to_container(cfg))]


def _names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
