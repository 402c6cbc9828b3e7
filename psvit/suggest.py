"""Choices and options that do not exist, and the name that was meant."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf

from psvit.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
NO_OPTION = re.compile(r"Could not override '([^']+)'|'([^']+)' does not exist")
NO_CHOICE = re.compile(r"Could not find '(.+)/([^/']+)'")


def check_choices(arguments: Sequence[str]) -> None:
    """Raise a UserError for a group that is given a value in place of a choice: ``dataset=null``.

    Hydra refuses it with a traceback and without its name.
    """
    for argument in arguments:
        name, _, value = argument.partition("=")
        if not (CONF / name).is_dir() or not value:
            continue
        given = OverridesParser.create().parse_override(argument).value()
        jobs = given.list if isinstance(given, ChoiceSweep) else [given]
        if any(each is None or isinstance(each, (bool, int, float)) for each in jobs):
            choices = sorted(path.stem for path in (CONF / name).glob("*.yaml"))
            raise UserError(
                name, value, f"expected one of {', '.join(choices)}; left out, it is the default"
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
        nearest = difflib.get_close_matches(choice, error.options or [], 1)
        return f" (did you mean {group}={nearest[0]}?)" if nearest else ""
    if isinstance(error, ConfigCompositionException) and (found := NO_OPTION.search(text)):
        nearest = difflib.get_close_matches(found[1] or found[2], _options(arguments), 1)
        return f" (did you mean {nearest[0]}?)" if nearest else ""
    return ""


def _options(arguments: Sequence[str]) -> list[str]:
    """The options and groups that there are with the groups' choices of the command line."""
    choices = [each for each in arguments if (CONF / each.split("=")[0].lstrip("+")).is_dir()]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", choices)
    except HydraException:
        return []
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    return [*groups, *_names(OmegaConf.to_container(cfg))]


def _names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
