"""The name that was meant, where an option or a choice does not exist."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
NO_OPTION = re.compile(r"Could not override '([^']+)'|'([^']+)' does not exist")
NO_CHOICE = re.compile(r"Could not find '(.+)/([^/']+)'")


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
