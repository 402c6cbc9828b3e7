"""What a run prunes, checked before anything long starts: the channel ranking, what is in reach."""

import fnmatch
import logging
import os

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from psvit.config.targets import targets
from psvit.data import ImageData
from psvit.errors import UserError
from psvit.pruning.allocation import COUNTED, Budget, large_groups, make_meter
from psvit.pruning.calibration import gradients, readers
from psvit.pruning.gram import check_rows, grams
from psvit.pruning.importance import STATISTICS
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import SOLVING
from psvit.pruning.sensitivity import grid_points

_log = logging.getLogger(__name__)


def set_deterministic(value: bool | str) -> None:
    """Whether torch may use kernels that give other bits each time (``trainer.deterministic``).

    Lightning does so for training alone, and only where something is trained. With ``"warn"`` an
    operation that has no other kernel is used and told, in place of an error.
    """
    torch.use_deterministic_algorithms(bool(value), warn_only=value == "warn")
    if value:
        # cuBLAS reads it once, before the first product on the GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def rank_channels(
    cfg: DictConfig,
    data: ImageData,
    network: nn.Module,
    base: nn.Module | None = None,
    importance: str | None = None,
    all_groups: bool = False,
) -> Ranking:
    """The groups that the config lets be pruned, each one's channels in order of importance.

    Args:
        cfg: the composed config.
        data: for the importances that need images.
        network: whose channels.
        base: what ``network`` was cut from, where it was: limits are shares of its groups.
        importance: in place of the config's.
        all_groups: also those that ``pruning.sensitivity.groups`` does not name.
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
        [*pruning.protect, *([] if all_groups else _not_analysed(pruning, network))],
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
    for them, the importance or the kinds of groups; groups that are not analysed are cut too."""
    pruning = cfg.pruning
    if _ranks_one_ratio_anew(pruning):
        importance = pruning.uniform_importance
        ranking = rank_channels(cfg, data, network, importance=importance, all_groups=True)
    return ranking.of_kinds(pruning.uniform_kinds)


def _ranks_one_ratio_anew(pruning: DictConfig) -> bool:
    own = pruning.uniform_importance not in (None, pruning.importance)
    return own or pruning.sensitivity.groups is not None


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
    image, _ = data.val[0]
    _check_readers(cfg, data, network, ranking, image.unsqueeze(0))
    grid_points(ranking, [pruning.get("ratio", 0.0), *pruning.ratios])
    counted = {
        name: share
        for name, share in targets(pruning).items()
        if share is not None and name in COUNTED
    }
    # a count asks for an image's shape alone
    with torch.random.fork_rng(devices=[]):
        meters = {name: make_meter(network, name, image.unsqueeze(0)) for name in counted}
        budget = Budget(network, counted, meters)
        budget.check_reachable(ranking, *reach(pruning, network, ranking))


def _check_readers(
    cfg: DictConfig, data: ImageData, network: nn.Module, ranking: Ranking, image: Tensor
) -> None:
    """Raise a UserError for a group whose readers cannot tell what the config asks of them."""
    pruning = cfg.pruning
    scored = {pruning.importance: ranking.groups}
    if _ranks_one_ratio_anew(pruning):
        every = rank_channels(cfg, data, network, importance="random", all_groups=True)
        scored[pruning.uniform_importance or pruning.importance] = every.groups
    if pruning.sensitivity.method == "estimated":
        for group in ranking.groups.values():
            readers(group)
    # an analysis alone recovers nothing
    recovers = pruning.name != "sensitivity" and pruning.get("recovery") in SOLVING
    if recovers or mends_candidates(pruning):
        asked_by = f"pruning.recovery={pruning.recovery}"
        check_rows(network, ranking.groups.values(), image, asked_by)
    for importance, groups in scored.items():
        if STATISTICS.get(importance, gradients) is not gradients:
            for group in groups.values():
                readers(group)
        if STATISTICS.get(importance) is grams:
            check_rows(network, groups.values(), image, f"the importance {importance}")


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
