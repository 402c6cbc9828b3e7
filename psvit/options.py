"""What an option's value may be: the test of it, and the words of the message that refuses it."""

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from psvit.errors import UserError


class Allowed(NamedTuple):
    """The values that an option may have, as plain Python values.

    Args:
        holds: whether a value is one of them.
        words: what they are, for whoever gave another one: "a number above 0".
    """

    holds: Callable[[Any], bool]
    words: str

    def check(self, option: str, value: Any) -> None:
        """Raise a UserError unless ``value`` is one that ``option``, by its full name, may have."""
        if not self.holds(value):
            raise UserError(option, value, f"expected {self.words}")

    def or_null(self, meaning: str = "") -> "Allowed":
        """These values and None, which means ``meaning``: "for all of them"."""
        return Allowed(
            lambda x: x is None or self.holds(x), f"{self.words}, or null {meaning}".rstrip()
        )

    def also(self, *values: Any) -> "Allowed":
        """These and a few others, which ``words`` names already."""
        # type too, as True == 1
        return Allowed(
            lambda x: any(type(x) is type(v) and x == v for v in values) or self.holds(x),
            self.words,
        )

    def once(self) -> "Allowed":
        """Those of these lists, of strings, that hold nothing twice."""
        return self.where(lambda x: len(set(x)) == len(x), f"{self.words}, each once")

    def where(self, holds: Callable[[Any], bool], words: str) -> "Allowed":
        """Those of these values that ``holds`` is true of."""
        return Allowed(lambda x: self.holds(x) and holds(x), words)


def number(low: float, high: float, words: str, excluded: Collection[float] = ()) -> Allowed:
    """Finite numbers from ``low`` to ``high``, both included where they are not ``excluded``."""
    return Allowed(
        lambda x: (
            isinstance(x, int | float)
            and not isinstance(x, bool)
            and math.isfinite(x)
            and low <= x <= high
            and x not in excluded
        ),
        words,
    )


def whole(low: int = 1, high: int = 2**63, words: str = "") -> Allowed:
    """Whole numbers from ``low`` to ``high``, both included."""
    most = f", at most {high}" if high < 2**63 else ""
    return Allowed(
        lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high,
        words or f"a whole number of at least {low}{most}",
    )


def one_of(names: Iterable[str]) -> Allowed:
    known = list(names)
    return Allowed(lambda x: x in known, f"one of {', '.join(known)}")


def one_or_more_of(names: Iterable[str]) -> Allowed:
    """One name, or a list of at least one, each once."""
    known = list(names)
    several = list_of(one_of(known)).once()
    words = f"one or a list of {', '.join(known)}, each once"
    return Allowed(lambda x: x in known or several.holds(x), words)


def list_of(
    entry: Allowed, length: int | None = None, words: str = "", empty: bool = False
) -> Allowed:
    """Lists of ``length`` such entries; without one, of at least one, or of none with ``empty``."""

    def holds(x: Any) -> bool:
        fits = isinstance(x, list) and (length is None or len(x) == length)
        return fits and (empty or len(x) > 0) and all(map(entry.holds, x))

    return Allowed(holds, words or f"a list, each {entry.words}")


def text(words: str) -> Allowed:
    """Strings that are not empty."""
    return Allowed(lambda x: isinstance(x, str) and x != "", words)


FLAG = Allowed(lambda x: isinstance(x, bool), "true or false")
RATIO = number(0.0, 1.0, "a ratio in [0, 1)", excluded=(1.0,))
SHARE = number(0.0, 1.0, "a share in (0, 1)", excluded=(0.0, 1.0))
POSITIVE = number(0.0, 1e9, "a number above 0", excluded=(0.0,))
NOT_NEGATIVE = number(0.0, 1e3, "a number of at least 0")
