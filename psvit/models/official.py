"""Weights that the authors released -> this project's parameter names."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from psvit.errors import UserError
from psvit.models.meta_spikeformer import MetaSpikeFormer

# (pattern of the authors' key, this project's), tried in order on the whole key, all applied
_META_SPIKEFORMER = [
    (r"^downsample1_1\.encode_(conv|bn)", r"stage1a.downsample.\1"),
    (r"^downsample1_2\.encode_(conv|bn)", r"stage1b.downsample.\1"),
    (r"^downsample(\d)\.encode_(conv|bn)", r"stage\1.downsample.\2"),
    (r"^ConvBlock1_1\.0", "stage1a.block1"),
    (r"^ConvBlock1_2\.0", "stage1b.block1"),
    (r"^ConvBlock2_(\d)\.0", r"stage2.block\1"),
    (r"\.Conv\.pwconv(\d)", r".sep_conv.conv\1"),
    (r"\.Conv\.dwconv", ".sep_conv.depthwise"),
    (r"\.Conv\.bn(\d)", r".sep_conv.bn\1"),
    (r"^(stage\w+\.block\d)\.(conv|bn)(\d)", r"\1.mlp.\2\3"),
    (r"^block(\d)\.(\d+)", lambda m: f"stage{m[1]}.block{int(m[2]) + 1}"),
    (r"\.attn\.(q|k|v|proj)_conv",
     lambda m: ".attn." + {"q": "query", "k": "key", "v": "value", "proj": "projection"}[m[1]]),
    (r"\.0\.body\.0\.", ".conv1."),
    (r"\.0\.body\.1\.bn\.", ".bn1."),
    (r"\.0\.body\.2\.0\.", ".depthwise."),
    (r"\.0\.body\.2\.1\.", ".conv2."),
    (r"\.0\.body\.2\.2\.", ".bn2."),
    (r"(\.attn\.\w+)\.1\.", r"\1.bn3."),
    (r"\.mlp\.fc(\d)_conv", r".mlp.conv\1"),
    (r"\.mlp\.fc(\d)_bn", r".mlp.bn\1"),
    (r"^head\.", "head.fc."),
]

_RENAMES = {MetaSpikeFormer: _META_SPIKEFORMER}


def load_official(model: nn.Module, state_dict: Mapping[str, object]) -> nn.Module:
    """Load a state dict with the authors' names into ``model``, strictly; returns ``model``.

    Args:
        model: one of this package's networks.
        state_dict: the authors' keys, with or without ``module.``, bare or under ``model`` or
            ``state_dict``.

    Raises:
        UserError: a key is missing, unexpected, or of another shape; the message names it.
    """
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    wanted = model.state_dict()
    loaded: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = rename(key.removeprefix("module."), _RENAMES[type(model)])
        if name not in wanted:
            raise UserError("checkpoint", key, f"not a weight of {type(model).__name__}")
        # the authors write 1x1 convolutions over tokens as Conv1d, here all are Conv2d
        if tensor.dim() == 3 and wanted[name].dim() == 4:
            tensor = tensor.unsqueeze(-1)
        if tensor.shape != wanted[name].shape:
            raise UserError(
                "checkpoint", key,
                f"has shape {list(tensor.shape)}, this network needs {list(wanted[name].shape)}",
            )
        loaded[name] = tensor
    missing = [name for name in wanted if name not in loaded]
    if missing:
        raise UserError("checkpoint", missing[0], f"missing, and {len(missing) - 1} more weights")
    model.load_state_dict(loaded)
    return model


def rename(key: str, table: list) -> str:
    """The authors' key in this project's words."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key
