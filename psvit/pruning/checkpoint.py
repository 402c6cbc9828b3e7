"""A network as a folder, ``model.safetensors`` and ``model.yaml``: all it takes to load it."""

import hashlib
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.files import write_text, write_whole
from psvit.models import create_model
from psvit.pruning.surgery import compose, prune_

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"


def save(model: nn.Module, folder: Path, plan: Plan | None = None, **facts: Any) -> None:
    """Write ``model`` to ``folder``.

    Args:
        model: a network that ``create_model`` made, pruned or not.
        plan: what was cut out of the network as it was made or loaded.
        **facts: what else to remember under their names (preprocessing, provenance, metrics).
    """
    folder = Path(folder)
    _, plan = against_original(model, plan or Plan())
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    write_whole(folder / WEIGHTS, lambda path: save_file(tensors, path))
    description = {
        "model": {key: _plain(value) for key, value in model.spec.items()},
        "plan": {name: list(kept) for name, kept in plan.items()},
        "sha256": digest(folder / WEIGHTS),
        **facts,
    }
    write_text(
        folder / DESCRIPTION,
        yaml.safe_dump(description, sort_keys=False, default_flow_style=None, width=100),
    )


def load(
    folder: Path, option: str = "ckpt_path", module: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the network that ``save`` wrote; returns it and its description.

    Args:
        folder: where it lies.
        option: what errors call the folder.
        module: Python module that registers the network, if it is one of your own. It is never
            taken from the folder: a file from elsewhere must not choose what is imported.

    Raises:
        UserError: a file is missing, damaged, or the weights do not fit the description. The
            error names ``option``.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise UserError(
                option,
                folder,
                f"expected a folder with {WEIGHTS} and {DESCRIPTION}; no {name} there",
            )
    try:
        description = yaml.safe_load((folder / DESCRIPTION).read_text())
        spec, plan = dict(description["model"]), Plan(description["plan"])
        weights = load_file(folder / WEIGHTS)
        model = prune_(create_model(**{**spec, "module": module}), plan)
    # a UserError, which is a ValueError, would name an option that the user has not given
    except (
        yaml.YAMLError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        SafetensorError,
        OSError,
    ) as error:
        raise UserError(
            option, folder, f"damaged or not written by this program ({error})"
        ) from error
    wanted = model.state_dict()
    for name in sorted({*wanted, *weights}):
        if name not in weights:
            raise UserError(
                option, folder, f"its weights lack {name}: another network's, or edited"
            )
        if name not in wanted or wanted[name].shape != weights[name].shape:
            raise UserError(
                option,
                folder,
                f"weight {name} {list(weights[name].shape)} does not fit the network that "
                f"{DESCRIPTION} describes",
            )
    model.load_state_dict(weights)
    # what is cut from now on is cut from what is left
    model.plan = plan
    return model, description


def against_original(model: nn.Module, plan: Plan) -> tuple[nn.Module, Plan]:
    """``plan``, a cut of the network as it was made or loaded, as a cut of the unpruned network.

    Returns the unpruned network (without weights) and the plan.
    """
    with torch.device("meta"):
        original = create_model(**model.spec)
    before = getattr(model, "plan", Plan())
    return original, compose(original, before, plan) if before else plan


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
