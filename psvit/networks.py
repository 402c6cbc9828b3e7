"""The networks of a run: built, loaded, and checked against what is asked for and the images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from psvit.data import ImageData
from psvit.errors import UserError
from psvit.models import create_model
from psvit.models.official import load_official, read_checkpoint
from psvit.processes import world_size
from psvit.pruning import checkpoint
from psvit.suggest import CONF

_log = logging.getLogger(__name__)

# what a loaded network must have as this run asks for it
ASKED = ("name", "num_classes", "in_channels", "image_size")
# a network, and the description that it was saved with
Loaded = tuple[nn.Module, dict[str, Any]]


def load_network(cfg: DictConfig) -> Loaded | None:
    """The network of ``ckpt_path``, if that is a folder; ``cfg.model`` takes on what it is.

    Before the data: recordings of an event camera are read in as many frames as it has steps.

    Raises:
        UserError: the folder holds no network, or another than the config asks for, or
            ``ckpt_time_steps`` goes with none.
    """
    steps = cfg.ckpt_time_steps
    cfg.ckpt_path = folder = checkpoint.folder_of(cfg.ckpt_path)
    if folder is None or Path(folder).is_file():
        if steps is not None:
            reason = (
                "expected null where ckpt_path is no network's folder: model.time_steps says it"
            )
            raise UserError("ckpt_time_steps", steps, reason)
        return None
    network, about = checkpoint.load(Path(folder), module=cfg.model.get("module"))
    values = OmegaConf.to_container(cfg.model, resolve=True)
    # what the config leaves to the images is compared when these are read
    asked = {name: values[name] for name in ASKED if values.get(name) is not None}
    asked["image_size"] = cfg.dataset.image_size
    _check_asked("ckpt_path", folder, network, asked, _to_have(network.spec))
    if steps is not None:
        # weights serve any number of them
        network.time_steps = steps
        network.spec = {**network.spec, "time_steps": steps}
    other = {
        name: value
        for name, value in network.spec.items()
        if name in values and name not in ASKED and values[name] != value
    }
    if other:
        told = ", ".join(f"{name}={value}" for name, value in other.items())
        _log.info("ckpt_path: its network is taken as it is, whatever model= says: %s", told)
        # config.yaml says what ran
        cfg.model.update(other)
    return network, about


def _to_have(spec: dict[str, Any]) -> dict[str, str]:
    """For each of ``ASKED`` the option with which a run asks for a network of ``spec``."""
    right = {name: f"model.{name}={spec.get(name)}" for name in ASKED}
    right["image_size"] = f"dataset.image_size={spec.get('image_size')}"
    if (CONF / "model" / f"{spec['name']}.yaml").is_file():
        right["name"] = f"model={spec['name']}"
    return right


def build_network(
    cfg: DictConfig, data: ImageData, loaded: Loaded | None
) -> tuple[nn.Module, bool]:
    """The base network, and whether it comes trained (``ckpt_path``).

    Args:
        cfg: the composed config.
        data: says classes, channels and pixels.
        loaded: what ``load_network`` gave.

    Raises:
        UserError: the values make no network, or the checkpoint is another network's, or knows
            other classes.
    """
    network, trained = _network(cfg, data, loaded)
    if world_size() > 1 and network.spec.get("batch_as_time"):
        reason = "expected false where processes share a batch: an image sees those before it there"
        raise UserError("model.batch_as_time", True, reason)
    return _in_order(cfg, network), trained


def _in_order(cfg: DictConfig, network: nn.Module) -> nn.Module:
    order = torch.channels_last if cfg.channels_last else torch.contiguous_format
    return network.to(memory_format=order)


def _network(cfg: DictConfig, data: ImageData, loaded: Loaded | None) -> tuple[nn.Module, bool]:
    values = OmegaConf.to_container(cfg.model, resolve=True)
    for name in ("num_classes", "in_channels"):
        given, found = values.get(name), getattr(data, name)
        if given not in (None, found):
            raise UserError(f"model.{name}", given, f"dataset={cfg.dataset.name} has {found}")
        values[name] = found
    size = cfg.dataset.image_size
    if values.get("image_size", size) != size:
        reason = f"dataset={cfg.dataset.name} has images of {size} pixels: dataset.image_size"
        raise UserError("model.image_size", values["image_size"], reason)
    if loaded is not None:
        network, about = loaded
        _check_asked("ckpt_path", cfg.ckpt_path, network, {name: values[name] for name in ASKED})
        _check_images("ckpt_path", cfg.ckpt_path, about, cfg, data)
        return network, True
    network = create_model(**values)
    if cfg.ckpt_path is None:
        return network, False
    try:
        return load_official(network, read_checkpoint(cfg.ckpt_path)), True
    except UserError as error:
        reason = f"{error.value}: {error.expected}"
        raise UserError("ckpt_path", cfg.ckpt_path, reason) from error


def _check_asked(
    option: str,
    folder: str,
    network: nn.Module,
    asked: dict[str, Any],
    right: Mapping[str, str] | None = None,
) -> None:
    """Raise a UserError where a loaded network is another than this run asks for; ``right`` says
    what to type for it."""
    for name, value in asked.items():
        if network.spec.get(name, value) != value:
            reason = f"its network has {name}={network.spec[name]}, this run asks for {value}"
            if right:
                reason += f": expected {right[name]}"
            raise UserError(option, folder, reason)


def _check_images(
    option: str, folder: str, about: dict[str, Any], cfg: DictConfig, data: ImageData
) -> None:
    """Raise a UserError where a loaded network knows other classes than the images have; warn
    where it was trained on images that were prepared in another way."""
    for theirs, ours in zip(about.get("classes") or [], data.class_names, strict=False):
        if theirs != ours:
            reason = f"knows a class {theirs} where dataset={cfg.dataset.name} has {ours}"
            raise UserError(option, folder, reason)
    trained_on = about.get("preprocessing") or {}
    other = {
        step: value
        for step, value in data.preprocessing.items()
        if trained_on.get(step, value) != value
    }
    if other:
        told = ", ".join(
            f"{step}={trained_on[step]}, here dataset.{step}={value}"
            for step, value in other.items()
        )
        _log.warning("%s: its network saw images prepared otherwise: %s", option, told)


def load_teacher(cfg: DictConfig, data: ImageData, group: str) -> nn.Module | None:
    """The network that a training follows, if the config names one and something is trained.

    Args:
        cfg: the composed config.
        data: says classes, channels and pixels.
        group: ``training`` or ``finetune``, whose ``teacher`` it is. Without one, fine-tuning
            follows the base network.

    Raises:
        UserError: the folder holds no network, or one of other images or classes.
    """
    folder, option = cfg[group].get("teacher"), f"{group}.teacher"
    trains = cfg.ckpt_path is None if group == "training" else cfg.finetune.epochs
    if folder is None or not trains:
        return None
    teacher, about = checkpoint.load(folder, option, cfg.model.get("module"))
    asked = {name: getattr(data, name) for name in ("num_classes", "in_channels", "image_size")}
    _check_asked(option, folder, teacher, asked)
    _check_images(option, folder, about, cfg, data)
    return _in_order(cfg, teacher)
