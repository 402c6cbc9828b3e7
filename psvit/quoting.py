"""Arguments that Hydra's grammar does not have, and the quotes that they lack."""

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException


def how_to_quote(error: Exception) -> str:
    """ " (put the value in quotes: …)" behind an argument that Hydra's grammar does not have, or ""
    where quotes are not what it lacks."""
    if not isinstance(error, OverrideParseException):
        return ""
    name, given, value = error.override.partition("=")
    # an unfinished list or text was meant as one
    if not given or value.startswith(("[", "{", "'", '"')):
        return ""
    escaped = value.replace('"', '\\"')
    quoted = f'{name}="{escaped}"'
    try:
        if OverridesParser.create().parse_override(quoted).value() != value:
            return ""
    except HydraException:
        return ""
    return f" (put the value in quotes: {shlex.quote(quoted)})"
