"""timm's policies of augmentation, by the names it gives them: RandAugment, AugMix, AutoAugment.

timm skips what it does not understand of a name, so that a slip trains without what was meant; here
every section of one is checked.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from omegaconf import DictConfig
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms import str_to_pil_interp

from psvit.errors import UserError

# timm bounds no count; these many operations on each image take minutes a batch
MANY = 100


class _Number(NamedTuple):
    """What may follow the letters of a section."""

    low: float
    high: float
    whole: bool = True

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if math.isinf(self.high):
            return f"{kind}, at least {self.low:g}"
        return f"{kind} from {self.low:g} to {self.high:g}"

    def holds(self, text: str) -> bool:
        pattern = r"\d+" if self.whole else r"\d+(\.\d*)?(e\d+)?"
        return bool(re.fullmatch(pattern, text, re.ASCII)) and self.low <= float(text) <= self.high


_FLAG, _COUNT, _PART = _Number(0, 1), _Number(1, MANY), _Number(0, 1, whole=False)
_SPREAD = {"mstd": _Number(0, math.inf, whole=False)}
_RAND = {"m": _Number(0, MANY), "n": _COUNT, "p": _PART, **_SPREAD, "mmax": _COUNT, "inc": _FLAG}
# the draw of AugMix's weights underflows far below a = 0.1
_AUGMIX = {"m": _Number(0, 10), "w": _COUNT, "d": _Number(0, MANY), "b": _FLAG, **_SPREAD}
_AUGMIX |= {"a": _Number(0.1, 1000, whole=False)}
_POLICIES: dict[str, tuple[dict[str, _Number], Callable]] = {
    "rand": (_RAND, rand_augment_transform),
    "augmix": (_AUGMIX, augment_and_mix_transform),
    **{
        name: (_SPREAD, auto_augment_transform)
        for name in ("original", "originalr", "v0", "v0r", "3a")
    },
}
# any other name is, to timm, that of the set it takes without a name
_SETS = ("tweights", "t3a", "t3aw")


def auto_augment(cfg: DictConfig) -> Callable | None:
    """The policy that ``cfg.augment.auto_augment`` names, of one PIL image; None without one.

    Args:
        cfg: the ``dataset`` group.

    Raises:
        UserError: naming the section of it that timm would skip or fail on.
    """
    policy = cfg.augment.auto_augment
    if policy is None:
        return None
    name, *sections = policy.split("-")
    if name not in _POLICIES:
        raise _refused(
            policy,
            "a policy as timm writes it, such as rand-m7-mstd0.5-inc1, augmix-m3 or original",
        )
    allowed, create = _POLICIES[name]
    values = _read(policy, name, sections, allowed)
    most = values.get("mmax", "10")
    # timm clips it in silence
    if name == "rand" and int(values.get("m", 0)) > int(most):
        raise _refused(
            policy, f"'m{values['m']}' is above {most}, the largest magnitude; mmax sets another"
        )
    transform = create(
        policy,
        {
            "translate_const": int(cfg.image_size * 0.45),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in cfg.mean),
            "interpolation": str_to_pil_interp(cfg.interpolation),
        },
    )
    # sets with weights are drawn from without putting back
    weighted = getattr(transform, "choice_weights", None) is not None
    if weighted and transform.num_layers > len(transform.ops):
        raise _refused(
            policy,
            f"'n{values['n']}' is above the {len(transform.ops)} operations of {values['t']}",
        )
    return transform


def _read(
    policy: str, name: str, sections: list[str], allowed: dict[str, _Number]
) -> dict[str, str]:
    """What follows the letters of each section, by the letters; all of a set's name, by ``t``."""
    values: dict[str, str] = {}
    for section in sections:
        if name == "rand" and section.startswith("t"):
            key, value = "t", section
            if section not in _SETS:
                raise _refused(policy, f"{section!r} is no set of operations: {', '.join(_SETS)}")
        else:
            key = re.split(r"\d", section, maxsplit=1)[0]
            value = section[len(key) :]
            if key not in allowed:
                known = ", ".join([*allowed, *_SETS] if name == "rand" else allowed)
                raise _refused(
                    policy, f"{section!r} is no section that timm reads after {name}: {known}"
                )
            if not allowed[key].holds(value):
                raise _refused(policy, f"{section!r} is wrong: after {key} comes {allowed[key]}")
        if key in values:
            raise _refused(policy, f"{section!r} is the second {key}; give one")
        values[key] = value
    return values


def _refused(policy: str, expected: str) -> UserError:
    return UserError("dataset.augment.auto_augment", policy, expected)
