"""A network as a folder, ``model.safetensors`` and ``model.yaml``: all it takes to load it.

``python -m psvit.pruning.checkpoint FOLDER...`` checks saved networks and tells what they are.
"""

import argparse
import hashlib
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor, nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.files import digest, write_text, write_whole
from psvit.measure.footprint import parameters
from psvit.models import create_model
from psvit.provenance import provenance
from psvit.pruning.description import DTYPES, from_yaml, reason, to_yaml
from psvit.pruning.surgery import compose, prune, prune_

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"
# what the command tells of a description
TOLD = ("dtype", "metrics", "provenance")
HALF = (torch.float16, torch.bfloat16)
# a description may claim any number of blocks, and any width before pruning; it is believed up to
# these, or as many blocks as there are weights, or so many times the parameters that are left
MANY_BLOCKS = 100
MANY_PARAMETERS, MANY_TIMES = 100_000_000, 100


def save(
    model: nn.Module,
    folder: Path,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
    **facts: Any,
) -> None:
    """Write ``model`` to ``folder``.

    Args:
        model: a network that ``create_model`` made, pruned or not.
        plan: what was cut out of the network as it was made or loaded.
        dtype: type to store; None for the network's own. float16 and bfloat16 hold parameters of
            two axes or more (convolutions, linear layers); biases, batch norms and buffers are
            then float32.
        **facts: what else to remember under their names (preprocessing, classes, metrics).
            ``provenance`` is added to what ``psvit.provenance`` finds out, and holds where both
            name the same.

    Raises:
        UserError: the plan is not that of this network, ``dtype`` is none that can be stored, or
            a weight is too large for it.
        TypeError: a fact is more than numbers, texts, lists and mappings.
    """
    folder = Path(folder)
    if dtype is not None and _name(dtype) not in DTYPES:
        raise UserError("dtype", dtype, f"expected one of {', '.join(DTYPES)}")
    original, plan = against_original(model, plan or Plan())
    # few numbers, and a small variance of a batch norm would become 0: not in half precision
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    tensors = {
        name: _stored(
            name, tensor, torch.float32 if dtype in HALF and name not in matrices else dtype
        )
        for name, tensor in model.state_dict().items()
    }
    # what could not be loaded is not written
    problem = _misfit(prune_(original, plan), tensors)
    if problem:
        raise UserError("plan", list(plan), f"not what was cut out of this network: {problem}")
    data = safetensors.torch.save(tensors)
    text = to_yaml(
        {
            "model": model.spec,
            "plan": plan,
            "dtype": _name(dtype or _own_dtype(tensors)),
            **facts,
            "provenance": provenance(**facts.get("provenance", {})),
            "sha256": {"weights": hashlib.sha256(data).hexdigest()},
        }
    )
    write_whole(folder / WEIGHTS, lambda path: path.write_bytes(data))
    write_text(folder / DESCRIPTION, text)


def load(
    folder: Path,
    option: str = "ckpt_path",
    module: str | None = None,
    module_option: str = "model.module=",
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network that ``save`` wrote; returns it and its description.

    It comes in the widest floating type that is stored, float32 at least: float64 networks come
    back as float64, half precision is for storing only.

    Args:
        folder: where it lies.
        option: what errors call the folder.
        module: Python module that registers the network, if it is one of your own. It is never
            taken from the folder: a file from elsewhere must not choose what is imported.
        module_option: how the user gives it, for the message.

    Raises:
        UserError: a file is missing, damaged or edited, the weights do not fit the description,
            or the network needs a module that was not given. The error names ``option``.
    """
    try:
        return _load(Path(folder), module, module_option)
    # a UserError is a ValueError: where it names an option, the user has not given that one
    except (ValueError, OSError) as error:
        raise UserError(option, folder, reason(error)) from error


def folder_of(path: str | None) -> str | None:
    """The folder of a saved network whose weights' file was named, as shells complete it; any
    other path as it is."""
    if path is None:
        return None
    file = Path(path)
    saved = file.name == WEIGHTS and (file.parent / DESCRIPTION).is_file()
    return str(file.parent) if saved else path


def _load(folder: Path, module: str | None, module_option: str) -> tuple[nn.Module, dict[str, Any]]:
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            missing = f"expected a folder with {WEIGHTS} and {DESCRIPTION}; no {name} there"
            inside = sorted(path.parent.name for path in folder.glob(f"*/{WEIGHTS}"))
            raise ValueError(f"{missing}, but in its {', '.join(inside)}" if inside else missing)
    try:
        description = from_yaml((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"damaged or not written by this program: {DESCRIPTION} {error}"
        ) from error
    tensors = _read_weights(folder / WEIGHTS, description["sha256"]["weights"])
    spec, plan = dict(description["model"]), Plan(description["plan"])
    wanted = spec.get("module")
    if wanted not in (None, module):
        raise ValueError(
            f"its network is registered by the Python module {wanted!r}, and a file must not "
            f"choose what is run: if you trust it, give {module_option}{wanted} yourself"
        )
    spec["module"] = module
    # shapes alone first: a description may ask for any amount of memory
    problem = _misfit(_outline(spec, plan, tensors), tensors)
    if problem:
        raise ValueError(f"{WEIGHTS} does not fit the network of {DESCRIPTION}: {problem}")
    model = prune_(_create(spec, "cpu"), plan).to(_loaded_dtype(tensors))
    model.load_state_dict(tensors)
    # what is cut from now on is cut from what is left
    model.plan = plan
    return model, description


def against_original(model: nn.Module, plan: Plan) -> tuple[nn.Module, Plan]:
    """``plan``, a cut of the network as it was made or loaded, as a cut of the unpruned network.

    Returns the unpruned network (without weights) and the plan.

    Raises:
        UserError: the plan is not one of the network as it was loaded.
    """
    with torch.device("meta"):
        original = create_model(**model.spec)
    before = getattr(model, "plan", Plan())
    if not before or not plan:
        return original, plan or before
    plan.check(prune(original, before).channel_groups())
    return original, compose(original, before, plan)


def weights_digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights: of a saved folder's, or of the file itself."""
    path = Path(path)
    return digest(path / WEIGHTS if path.is_dir() else path)


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    # read once: what was checked is what is used
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(
            f"{path.name} does not match {DESCRIPTION}: it is damaged, cut short, edited or of "
            "another network; copy the whole folder again from where it came"
        )
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path.name} holds no weights: {reason(error)}") from error


def _outline(spec: Mapping[str, Any], plan: Plan, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that ``spec`` and ``plan`` describe, without memory for its weights.

    Raises:
        ValueError: they describe none, or one that is too large for these weights.
    """
    depth = spec.get("depth")
    blocks = sum(depth) if isinstance(depth, list) and set(map(type, depth)) == {int} else depth
    if isinstance(blocks, int) and blocks > max(len(tensors), MANY_BLOCKS):
        raise ValueError(f"{DESCRIPTION} describes {blocks} blocks, more than there are weights")
    network = _create(spec, "meta")
    size = parameters(network)
    if size > max(MANY_PARAMETERS, MANY_TIMES * sum(map(Tensor.numel, tensors.values()))):
        raise ValueError(f"{DESCRIPTION} describes {size} parameters before pruning: too many")
    try:
        return prune_(network, plan)
    # the plan does not fit, or a network of the user's own cannot be cut
    except Exception as error:
        raise ValueError(f"{DESCRIPTION} describes no network: {reason(error)}") from error


def _create(spec: Mapping[str, Any], device: str) -> nn.Module:
    try:
        with torch.device(device):
            return create_model(**spec)
    # values that a family does not check, or a network of the user's own, may fail in any way
    except Exception as error:
        raise ValueError(f"{DESCRIPTION} describes no network: {reason(error)}") from error


def _misfit(network: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """The first difference between what ``network`` needs and ``tensors``; None without one."""
    needed = network.state_dict()
    for name in sorted({*needed, *tensors}):
        if name not in tensors:
            return f"{name} is missing"
        if name not in needed:
            return f"{name} is not in that network"
        found, wanted = list(tensors[name].shape), list(needed[name].shape)
        if found != wanted:
            return f"{name} is {found}, not {wanted}"
    return None


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy of ``tensor`` as it is stored: on the CPU, contiguous, of its own memory."""
    if dtype is None or not tensor.is_floating_point():
        dtype = tensor.dtype
    stored = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if not torch.equal(stored.isfinite(), tensor.detach().cpu().isfinite()):
        raise UserError("dtype", dtype, f"too narrow: {name} has values beyond its largest")
    return stored


def _own_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The type of the first floating tensor: the network's, in all but odd cases."""
    kinds = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return next(kinds, torch.float32)


def _loaded_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    return torch.float64 if torch.float64 in {t.dtype for t in tensors.values()} else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(arguments: list[str] | None = None) -> int:
    """Check each folder and tell what it holds; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m psvit.pruning.checkpoint", description=main.__doc__
    )
    parser.add_argument("folder", nargs="+", help=f"a folder with {WEIGHTS} and {DESCRIPTION}")
    parser.add_argument("--module", help="Python module that registers a network of your own")
    options = parser.parse_args(arguments)
    for folder in options.folder:
        try:
            network, description = load(folder, "folder", options.module, "--module ")
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        cut = f"{len(description['plan'])} groups pruned" if description["plan"] else "not pruned"
        print(
            f"{folder}: {network.spec['name']}, {parameters(network):,} parameters, {cut}: intact"
        )
        told = {key: description[key] for key in TOLD if key in description}
        # as YAML: control characters that a file may hold are escaped
        print(textwrap.indent(yaml.safe_dump(told, sort_keys=False), "  "), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
