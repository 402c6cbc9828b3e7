"""Weights that the authors released: reading their files, and their names for our parameters."""

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from psvit.errors import UserError
from psvit.models.e_spikeformer import ESpikeFormer
from psvit.models.meta_spikeformer import MetaSpikeFormer
from psvit.models.qkformer import QKFormer
from psvit.models.sdt_v1 import SpikeDrivenTransformer
from psvit.models.spikformer import Spikformer

# (pattern of this project's key, the authors'), tried in order on the whole key, all applied
Table = list[tuple[str, str | Callable[[re.Match], str]]]


def _counted(name: str) -> Callable[[re.Match], str]:
    """``block3.`` -> ``<name>.2.``: the authors count from 0."""
    return lambda match: f"{name.format(*match.groups())}.{int(match.groups()[-1]) - 1}."


_QUERY_KEY_VALUE: Table = [
    (r"\.attn\.query", ".attn.q"),
    (r"\.attn\.key", ".attn.k"),
    (r"\.attn\.value", ".attn.v"),
    (r"\.attn\.projection", ".attn.proj"),
]
_MLP: Table = [(r"\.mlp\.(conv|bn)(\d)", r".mlp.fc\2_\1")]
_HEAD: Table = [(r"^head\.fc\.", "head.")]

# stages of Meta-SpikeFormer and E-SpikeFormer
_PYRAMID: Table = [
    (r"^stage1a\.downsample\.", "downsample1_1.encode_"),
    (r"^stage1b\.downsample\.", "downsample1_2.encode_"),
    (r"^stage(\d)\.downsample\.", r"downsample\1.encode_"),
    # the convolution MLP has no name of its own there
    (r"^(stage(?:1a|1b|2)\.block\d+)\.mlp\.", r"\1."),
    (r"^stage1a\.block(\d+)\.", _counted("ConvBlock1_1")),
    (r"^stage1b\.block(\d+)\.", _counted("ConvBlock1_2")),
    (r"^stage2\.block(\d+)\.", r"ConvBlock2_\1.0."),
    (r"^stage(\d)\.block(\d+)\.", _counted("block{0}")),
    (r"^(ConvBlock.*)\.sep_conv\.", r"\1.Conv."),
    (r"\.sep_conv\.", ".conv."),
    *_QUERY_KEY_VALUE,
    *_MLP,
    *_HEAD,
]
_META_SPIKEFORMER: Table = [
    *_PYRAMID,
    (r"\.Conv\.conv(\d)", r".Conv.pwconv\1"),
    (r"\.Conv\.depthwise", ".Conv.dwconv"),
    (r"\.attn\.(q|k|v|proj)\.bn3\.", r".attn.\1_conv.1."),
    (r"\.attn\.(q|k|v|proj)\.", r".attn.\1_conv.0.body."),
    (r"\.body\.conv1\.", ".body.0."),
    (r"\.body\.bn1\.", ".body.1.bn."),
    (r"\.body\.depthwise\.", ".body.2.0."),
    (r"\.body\.conv2\.", ".body.2.1."),
    (r"\.body\.bn2\.", ".body.2.2."),
]
_E_SPIKEFORMER: Table = [
    *_PYRAMID,
    (r"\.([Cc])onv\.conv(\d)\.", r".\1onv.pwconv\2.0."),
    (r"\.([Cc])onv\.bn(\d)\.", r".\1onv.pwconv\2.1."),
    (r"\.([Cc])onv\.depthwise\.", r".\1onv.dwconv.0."),
    (r"\.([Cc])onv\.depthwise_bn\.", r".\1onv.dwconv.1."),
    (r"\.attn\.(q|k|v|proj)\.conv\.", r".attn.\1_conv.0."),
    (r"\.attn\.(q|k|v|proj)\.bn\.", r".attn.\1_conv.1."),
]
# stem and blocks of Spike-driven Transformer V1 and Spikformer
_COLUMN: Table = [
    (r"^stem\.conv1\.", "patch_embed.proj_"),
    (r"^stem\.conv(\d)\.(conv|bn)", lambda m: f"patch_embed.proj_{m[2]}{int(m[1]) - 1}"),
    (r"^stem\.position\.", "patch_embed.rpe_"),
    (r"^stage1\.block(\d+)\.", _counted("block")),
    *_QUERY_KEY_VALUE,
    (r"\.attn\.(q|k|v|proj)\.", r".attn.\1_"),
    (r"\.talking_heads$", ".talking_heads.weight"),
    *_MLP,
    *_HEAD,
]
_SPIKFORMER_CIFAR: Table = [*_COLUMN, (r"(\.attn\.\w+|\.mlp\.\w+)_conv\.", r"\1_linear.")]
_QKFORMER: Table = [
    (r"^stem\.", "patch_embed1.proj_"),
    (r"\.embed\.shortcut\.", ".embed.proj_res_conv."),
    (r"\.embed\.shortcut_bn\.", ".embed.proj_res_bn."),
    (r"^stage1\.embed\.(conv|bn)(\d)", r"patch_embed1.proj\2_\1"),
    (r"\.embed\.(conv|bn)(\d)", lambda m: f".embed.proj{int(m[2]) + 2}_{m[1]}"),
    (r"^stage(\d)\.embed\.", r"patch_embed\1."),
    (r"^stage(\d)\.block(\d+)\.", _counted("stage{0}")),
    *_QUERY_KEY_VALUE,
    (r"\.attn\.(q|k|v|proj)\.", r".attn.\1_"),
    (r"^(stage[12]\.\d+)\.attn\.", r"\1.tssa."),
    *_MLP,
    *_HEAD,
]


def _table(model: nn.Module) -> Table:
    tables: dict[type, Table] = {
        MetaSpikeFormer: _META_SPIKEFORMER,
        ESpikeFormer: _E_SPIKEFORMER,
        SpikeDrivenTransformer: _COLUMN,
        Spikformer: _COLUMN,
        QKFormer: _QKFORMER,
    }
    if type(model) not in tables:
        raise UserError("checkpoint", type(model).__name__, "no released weights are known for it")
    if isinstance(model, Spikformer) and "stage1.block1.attn.query.conv.bias" in model.state_dict():
        return _SPIKFORMER_CIFAR
    return tables[type(model)]


def official_names(model: nn.Module) -> dict[str, str]:
    """The authors' name of every entry of ``model.state_dict()`` -> this project's."""
    table = _table(model)
    names = {}
    for ours in model.state_dict():
        theirs = ours
        for pattern, replacement in table:
            theirs = re.sub(pattern, replacement, theirs)
        names[theirs] = ours
    return names


def load_official(model: nn.Module, state_dict: Mapping[str, object]) -> nn.Module:
    """Load a state dict with the authors' names into ``model``, strictly; returns ``model``.

    Args:
        model: one of this package's networks.
        state_dict: the authors' keys, with or without ``module.``, bare or under ``model`` or
            ``state_dict``.

    Raises:
        UserError: a key is missing, unexpected, or of another shape; the message names it in the
            authors' words. Nothing is loaded then.
    """
    for wrapper in ("model", "state_dict"):
        inside = state_dict.get(wrapper)
        if isinstance(inside, Mapping):
            state_dict = inside
    wanted = model.state_dict()
    names = official_names(model)
    loaded: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        ours = names.get(str(key).removeprefix("module."))
        if ours is None or not isinstance(tensor, Tensor):
            raise UserError(
                "checkpoint",
                key,
                f"no weight of this {type(model).__name__}: another family or another size?",
            )
        loaded[ours] = _as_shape(key, tensor, wanted[ours].shape)
    missing = [theirs for theirs, ours in names.items() if ours not in loaded]
    if missing:
        more = f", and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise UserError("checkpoint", missing[0], f"missing in the checkpoint{more}")
    model.load_state_dict(loaded)
    return model


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a ``.safetensors`` file or a PyTorch checkpoint without executing anything in it.

    A PyTorch file may hold tensors, containers, numbers, text, and the ``argparse.Namespace`` of
    options that training scripts save beside the weights.

    Raises:
        UserError: the file is missing, unreadable, holds anything else, or is no dictionary.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # what was refused, out of PyTorch's paragraph about it
        match = re.search(r"(?:GLOBAL|class|Unsupported)\s+([\w.]+\.[\w.]+)", str(error))
        culprit = match[1] if match else "no pickle of weights"
        raise UserError(
            "checkpoint", path, f"refused, not executed: it holds more than weights ({culprit})"
        ) from error
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).splitlines()[:1]
        raise UserError("checkpoint", path, f"cannot be read as a checkpoint {reason}") from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError("checkpoint", path, f"expected a dictionary of weights, not a {kind}")
    return dict(content)


def _as_shape(key: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    # the authors write some 1x1 convolutions as Conv1d or Linear, here all are Conv2d
    pixels = (1,) * (len(shape) - tensor.dim()) if tensor.dim() >= 2 else ()
    if tensor.shape + pixels != shape:
        raise UserError(
            "checkpoint", key, f"has shape {list(tensor.shape)}, this network needs {list(shape)}"
        )
    return tensor.reshape(shape)
