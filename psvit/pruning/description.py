"""``model.yaml``, the description of a saved network: written with a checksum, read with mistrust.

Nothing in it is executed, and what does not fit is refused in one sentence (a ValueError, to which
``checkpoint.load`` adds the option and the folder).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# grows when older programs can no longer read what is written
FORMAT = 1
DTYPES = ("float16", "bfloat16", "float32", "float64")
MAX_REASON = 300


def to_yaml(description: Mapping[str, Any]) -> str:
    """The text of ``model.yaml``: ``description`` under its format, with its checksum added.

    Args:
        description: ``model``, ``plan``, ``dtype``, ``provenance``, ``sha256`` (with ``weights``)
            and any other facts.

    Raises:
        TypeError: a fact is more than numbers, texts, lists and mappings.
    """
    signed = {"format": None, **plain(description, "description")}
    signed["format"] = FORMAT
    # at the end: what is cut short is a description without its checksum
    hashes = signed.pop("sha256")
    signed["sha256"] = {**hashes, "description": checksum(signed)}
    return yaml.safe_dump(signed, sort_keys=False, default_flow_style=None, width=100)


def from_yaml(text: str) -> dict[str, Any]:
    """The description that ``to_yaml`` wrote.

    Raises:
        ValueError: it is damaged, edited, or of another program; says what is wrong.
    """
    try:
        description = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"is not the YAML that was written: {reason(error)}") from error
    if not isinstance(description, dict):
        raise ValueError("holds no description")
    written = description.get("format")
    if type(written) is int and written > FORMAT:
        raise ValueError(f"has format {written}, this version of psvit reads {FORMAT}: update it")
    for key, (right, expected) in _EXPECTED.items():
        if key not in description:
            raise ValueError(f"lacks {key}")
        if not right(description[key]):
            raise ValueError(f"needs as {key} {expected}")
    for name, kept in description["plan"].items():
        if not _ascending(kept):
            raise ValueError(f"needs as plan of {name} kept indices from 0 in ascending order")
    if not _as_signed(description):
        raise ValueError(
            "was edited after it was written: its checksum is another's; take the folder from "
            "where it came, or save the network again"
        )
    return description


def checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 of all that a description says but its own hashes, whatever its layout as text."""
    said = {key: value for key, value in description.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any, name: str) -> Any:
    """``value`` in what YAML can hold without tags: mappings, lists, numbers, texts, None.

    Raises:
        TypeError: there is more in it; ``name`` says where.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(entry, name) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    # arrays and numbers of NumPy and torch; versions and enumerations are texts and numbers
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist(), name)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{name}: a {type(value).__name__} cannot be written as plain YAML")


def reason(error: Exception) -> str:
    """An error's message in one short line; what a file put into it cannot steer a terminal."""
    text = "".join(c if c.isprintable() else " " for c in str(error) or type(error).__name__)
    text = " ".join(text.split())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} …"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases: ten lines of them can stand for a billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias, where this program writes none")
        return super().compose_node(parent, index)


def _by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _as_signed(description: dict[str, Any]) -> bool:
    try:
        return description["sha256"]["description"] == checksum(description)
    # keys that are no texts, which this program never writes
    except (TypeError, ValueError):
        return False


def _ascending(kept: Any) -> bool:
    """Whether ``kept`` are whole numbers from 0, each above the one before."""
    if not isinstance(kept, list) or not kept or any(type(index) is not int for index in kept):
        return False
    return kept[0] >= 0 and all(a < b for a, b in zip(kept, kept[1:], strict=False))


def _is_model(value: Any) -> bool:
    return (
        _by_name(value)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("module"), (str, type(None)))
    )


def _are_hashes(value: Any) -> bool:
    return _by_name(value) and all(
        re.fullmatch("[0-9a-f]{64}", str(value.get(of))) for of in ("weights", "description")
    )


# key -> (is it right?, what would be right)
_EXPECTED = {
    "format": (lambda value: type(value) is int and value == FORMAT, str(FORMAT)),
    "model": (_is_model, "the network's name and the values of its constructor"),
    "plan": (_by_name, "the kept indices by channel group"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "provenance": (_by_name, "facts by name"),
    "sha256": (_are_hashes, "the hashes of weights and description, 64 hexadecimal digits each"),
}
