"""Names of networks -> networks."""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import timm
from torch import nn

from psvit.errors import UserError
from psvit.models.e_spikeformer import ESpikeFormer
from psvit.models.meta_spikeformer import MetaSpikeFormer
from psvit.models.qkformer import QKFormer
from psvit.models.sdt_v1 import SpikeDrivenTransformer
from psvit.models.spikformer import Spikformer

# name -> (constructor, its values where they differ from the constructor's defaults)
_REGISTRY: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {}


def register_model(name: str, constructor: Callable[..., nn.Module], **values: Any) -> None:
    """Make ``constructor(**values)`` reachable as ``create_model(name)`` and ``model.name=…``.

    It becomes ``timm.create_model("psvit_<name>")`` as well.
    """
    _REGISTRY[name] = (constructor, values)
    if not timm.is_model(f"psvit_{name}"):
        _register_in_timm(name)


def model_names() -> list[str]:
    """All names that ``create_model`` knows."""
    return sorted(_REGISTRY)


def create_model(name: str, module: str | None = None, **overrides: Any) -> nn.Module:
    """Build a network; ``network.spec`` holds the name and the values to build it again.

    Args:
        name: a registered name, such as ``meta_spikeformer_15m``.
        module: Python module to import first, which registers networks of your own: the dotted
            name of a file in the current directory or on Python's path.
        **overrides: constructor values in place of the registered ones.

    Raises:
        UserError: unknown name or value, values that make no network, or a module that cannot be
            imported.
    """
    if module is not None:
        _import(module)
    constructor, values = _lookup(name)
    known = inspect.signature(constructor).parameters
    for option, value in overrides.items():
        if option not in known:
            raise UserError(
                f"model.{option}", value, f"{name} has no such value; it takes {', '.join(known)}"
            )
    defaults = {option: p.default for option, p in known.items() if p.default is not p.empty}
    # lists of any kind (tuples, Hydra's) as plain lists, which a YAML file can hold
    values = {
        option: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for option, value in {**defaults, **values, **overrides}.items()
    }
    network = constructor(**values)
    # not where the module was imported for another network, such as a teacher
    own = module is not None and _REGISTRY[name] is not _HERE.get(name)
    network.spec = {"name": name, **({"module": module} if own else {}), **values}
    return network


def _lookup(name: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.4) or model_names()
        raise UserError("model.name", name, f"unknown network; did you mean {' or '.join(near)}?")
    return _REGISTRY[name]


def _import(module: str) -> None:
    if not isinstance(module, str) or not all(map(str.isidentifier, module.split("."))):
        raise UserError("model.module", module, "expected a dotted name, as `import` takes it")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        spec = importlib.import_module(module).__spec__
    except ImportError as error:
        raise UserError("model.module", module, f"could not be imported: {error}") from error
    if spec is not None and not spec.has_location:
        # cached results depend on the file
        raise UserError("model.module", module, "expected a file: there is none of this module")


def _register_in_timm(name: str) -> None:
    def entrypoint(
        pretrained: bool = False,
        in_chans: int | None = None,
        img_size: int | None = None,
        drop_rate: float = 0.0,
        pretrained_cfg: object = None,
        pretrained_cfg_overlay: object = None,
        cache_dir: object = None,
        **overrides: Any,
    ) -> nn.Module:
        if pretrained or pretrained_cfg or pretrained_cfg_overlay:
            raise UserError(
                "pretrained", pretrained, "psvit comes without weights; see psvit.models.official"
            )
        if drop_rate:
            raise UserError("drop_rate", drop_rate, "no dropout here; there is drop_path_rate")
        for option, value in (("in_channels", in_chans), ("image_size", img_size)):
            if value is not None:
                overrides[option] = value
        return create_model(name, **overrides)

    entrypoint.__name__ = f"psvit_{name}"
    timm.models.register_model(entrypoint)


for size, embed_dims in {
    "": (64, 128, 256, 360),
    "_15m": (64, 128, 256, 360),
    "_31m": (96, 192, 384, 480),
    "_55m": (128, 256, 512, 640),
}.items():
    register_model(f"meta_spikeformer{size}", MetaSpikeFormer, embed_dims=embed_dims)

for size, embed_dims in {
    "": (64, 128, 256, 360),
    "_2_7m": (24, 48, 96, 128),
    "_5m": (32, 64, 128, 192),
    "_10m": (48, 96, 192, 240),
    "_19m": (64, 128, 256, 360),
}.items():
    register_model(f"e_spikeformer{size}", ESpikeFormer, embed_dims=embed_dims)

register_model("sdt_v1", SpikeDrivenTransformer)
for depth, width in ((8, 384), (6, 512), (8, 512), (10, 512), (8, 768)):
    register_model(f"sdt_v1_{depth}_{width}", SpikeDrivenTransformer, depth=depth, embed_dims=width)
register_model(
    "sdt_v1_cifar",
    SpikeDrivenTransformer,
    depth=2,
    embed_dims=512,
    strides=(1, 1, 2, 2),
    image_size=32,
    num_classes=10,
)

register_model("spikformer", Spikformer)
for width, heads in ((384, 12), (512, 8), (768, 12)):
    register_model(f"spikformer_8_{width}", Spikformer, embed_dims=width, num_heads=heads)
register_model(
    "spikformer_cifar",
    Spikformer,
    depth=4,
    embed_dims=384,
    num_heads=12,
    qkv_bias=True,
    strides=(1, 1, 2, 2),
    image_size=32,
    num_classes=10,
)

register_model("qkformer", QKFormer)
for width, heads in ((384, 6), (512, 8), (768, 12)):
    register_model(f"qkformer_10_{width}", QKFormer, embed_dims=width, num_heads=heads)

# what needs no module of the user's
_HERE = dict(_REGISTRY)
