"""Names of networks -> networks."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from psvit.errors import UserError
from psvit.models.meta_spikeformer import MetaSpikeFormer

# name -> (constructor, its values where they differ from the constructor's defaults)
_REGISTRY: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {}


def register_model(name: str, constructor: Callable[..., nn.Module], **values: Any) -> None:
    """Make ``constructor(**values)`` reachable as ``create_model(name)`` and ``model=…``."""
    _REGISTRY[name] = (constructor, values)


def model_names() -> list[str]:
    """All names that ``create_model`` knows."""
    return sorted(_REGISTRY)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network; ``network.spec`` holds the name and the values to build it again.

    Args:
        name: a registered name, such as ``meta_spikeformer_15m``.
        **overrides: constructor values in place of the registered ones.

    Raises:
        UserError: unknown name or value, or values that make no network.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.4) or model_names()
        raise UserError("model.name", name, f"unknown network; did you mean {' or '.join(near)}?")
    constructor, values = _REGISTRY[name]
    known = inspect.signature(constructor).parameters
    for option, value in overrides.items():
        if option not in known:
            raise UserError(
                f"model.{option}", value, f"{name} has no such value; it takes {', '.join(known)}"
            )
    values = {**values, **overrides}
    network = constructor(**values)
    network.spec = {"name": name, **values}
    return network


register_model("meta_spikeformer", MetaSpikeFormer)
register_model("meta_spikeformer_15m", MetaSpikeFormer, embed_dims=(64, 128, 256, 360))
register_model("meta_spikeformer_31m", MetaSpikeFormer, embed_dims=(96, 192, 384, 480))
register_model("meta_spikeformer_55m", MetaSpikeFormer, embed_dims=(128, 256, 512, 640))
