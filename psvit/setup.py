"""What a run is made of, checked before anything long starts: the network, the channel ranking."""

import fnmatch
import logging
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from psvit.config.targets import targets
from psvit.data import ImageData
from psvit.errors import UserError
from psvit.models import create_model
from psvit.models.official import load_official, read_checkpoint
from psvit.processes import world_size
from psvit.pruning import checkpoint
from psvit.pruning.allocation import COUNTED, Budget, large_groups, make_meter
from psvit.pruning.calibration import gradients, readers
from psvit.pruning.importance import STATISTICS
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import SOLVING
from psvit.pruning.sensitivity import grid_points

_log = logging.getLogger(__name__)

# what a loaded network must have as this run asks for it
ASKED = ("name", "num_classes", "in_channels", "image_size")


def set_deterministic(value: bool | str) -> None:
    """Whether torch may use kernels that give other bits each time (``trainer.deterministic``).

    Lightning does so for training alone, and only where something is trained. With ``"warn"`` an
    operation that has no other kernel is used and told, in place of an error.
    """
    torch.use_deterministic_algorithms(bool(value), warn_only=value == "warn")
    if value:
        # cuBLAS reads it once, before the first product on the GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


# a network, and the description that it was saved with
Loaded = tuple[nn.Module, dict[str, Any]]


def load_network(cfg: DictConfig) -> Loaded | None:
    """The network of ``ckpt_path``, if that is a folder; ``cfg.model`` takes on what it is.

    Before the data: recordings of an event camera are read in as many frames as it has steps.

    Raises:
        UserError: the folder holds no network, or ``ckpt_time_steps`` goes with none.
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
    if steps is not None:
        # weights serve any number of them
        network.time_steps = steps
        network.spec = {**network.spec, "time_steps": steps}
    values = OmegaConf.to_container(cfg.model, resolve=True)
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


def _check_asked(option: str, folder: str, network: nn.Module, asked: dict[str, Any]) -> None:
    """Raise a UserError where a loaded network is another than this run asks for."""
    for name, value in asked.items():
        if network.spec.get(name, value) != value:
            reason = f"its network has {name}={network.spec[name]}, this run asks for {value}"
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


def load_teacher(cfg: DictConfig, data: ImageData) -> nn.Module | None:
    """The network that fine-tuning follows in place of the base network, if the config names one.

    Raises:
        UserError: the folder holds no network, or one of other images or classes.
    """
    folder = cfg.finetune.get("teacher")
    if folder is None or not cfg.finetune.epochs:
        return None
    teacher, about = checkpoint.load(folder, "finetune.teacher", cfg.model.get("module"))
    asked = {name: getattr(data, name) for name in ("num_classes", "in_channels", "image_size")}
    _check_asked("finetune.teacher", folder, teacher, asked)
    _check_images("finetune.teacher", folder, about, cfg, data)
    return _in_order(cfg, teacher)


def rank_channels(
    cfg: DictConfig,
    data: ImageData,
    network: nn.Module,
    base: nn.Module | None = None,
    importance: str | None = None,
) -> Ranking:
    """The groups that the config lets be pruned, each one's channels in order of importance.

    Args:
        cfg: the composed config.
        data: for the importances that need images.
        network: whose channels.
        base: what ``network`` was cut from, where it was: limits are shares of its groups.
        importance: in place of the config's.
    """
    whole = None
    if base is not None and base is not network:
        whole = {name: group.size for name, group in base.channel_groups().items()}
    pruning = cfg.pruning
    importance = importance or pruning.importance
    needs_images = importance in STATISTICS
    return Ranking(
        network,
        importance,
        list(pruning.kinds),
        [*pruning.protect, *_not_analysed(pruning, network)],
        pruning.scope,
        data.calibration_dataloader(pruning.calibration_images) if needs_images else None,
        round_to=pruning.round_to,
        min_keep=pruning.min_keep,
        seed=cfg.seed,
        whole=whole,
    )


def rank_one_ratio(
    cfg: DictConfig, data: ImageData, network: nn.Module, ranking: Ranking
) -> Ranking:
    """What the networks of one ratio are cut by: ``ranking`` but for what the config has of its own
    for them, the importance or the kinds of groups."""
    pruning = cfg.pruning
    if pruning.uniform_importance not in (None, pruning.importance):
        ranking = rank_channels(cfg, data, network, importance=pruning.uniform_importance)
    return ranking.of_kinds(pruning.uniform_kinds)


def _not_analysed(pruning: DictConfig, network: nn.Module) -> list[str]:
    """The groups that no pattern of ``pruning.sensitivity.groups`` names."""
    patterns = pruning.sensitivity.groups
    if patterns is None:
        return []
    names = list(network.channel_groups())
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                "pruning.sensitivity.groups", pattern, f"matches none of {', '.join(names)}"
            )
    return [name for name in names if not any(fnmatch.fnmatch(name, p) for p in patterns)]


def mends_candidates(pruning: DictConfig) -> bool:
    """Whether the sensitivity table is of what recovery leaves: where the policy counts on it."""
    mended = pruning.sensitivity.mended
    if mended is not None:
        return mended
    counted_on = pruning.name == "budgeted" and pruning.recovery in SOLVING
    return counted_on and pruning.sensitivity.method == "measured"


def check_pruning(cfg: DictConfig, data: ImageData, network: nn.Module) -> None:
    """Raise a UserError for a grid or a target that this network cannot meet."""
    if cfg.pruning.name == "none":
        return
    pruning = cfg.pruning
    available = len(data.train)
    calibrates = (
        not STATISTICS.keys().isdisjoint([pruning.importance, pruning.uniform_importance])
        or pruning.get("recovery", "none") != "none"
        or pruning.sensitivity.method == "estimated"
        or mends_candidates(pruning)
    )
    if calibrates and pruning.calibration_images > available:
        raise UserError(
            "pruning.calibration_images",
            pruning.calibration_images,
            f"expected at most the {available} training images",
        )
    # how many channels may go does not depend on which: the cheapest importance answers
    ranking = rank_channels(cfg, data, network, importance="random")
    reading = STATISTICS.get(pruning.importance, gradients) is not gradients
    if reading or pruning.sensitivity.method == "estimated":
        for group in ranking.groups.values():
            readers(group)
    grid_points(ranking, [pruning.get("ratio", 0.0), *pruning.ratios])
    counted = {
        name: share
        for name, share in targets(pruning).items()
        if share is not None and name in COUNTED
    }
    # a count asks for an image's shape alone
    image, _ = data.val[0]
    with torch.random.fork_rng(devices=[]):
        meters = {name: make_meter(network, name, image.unsqueeze(0)) for name in counted}
        budget = Budget(network, counted, meters)
        budget.check_reachable(ranking, *reach(pruning, network, ranking))


def reach(
    pruning: DictConfig, network: nn.Module, ranking: Ranking
) -> tuple[float, list[str] | None]:
    """The share that the policy can take of a group, in all rounds; of which (None: of all)."""
    if pruning.name == "uniform":
        return 1.0, large_groups(network, ranking, pruning.large_share)
    if pruning.name == "global":
        return 1.0, None
    # the other policies' ratios are those of the grid
    return 1.0 - (1.0 - max(pruning.ratios)) ** pruning.get("rounds", 1), None
