"""Which units of each channel group go first, and how many may go."""

import copy
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup, Plan, first_weight
from psvit.errors import UserError
from psvit.pruning.calibration import SCOPES, Batches
from psvit.pruning.importance import IMPORTANCES, STATISTICS, random


def removable(
    group: ChannelGroup,
    round_to: int = 1,
    min_keep: float = 0,
    channels: int = 1,
    whole: int | None = None,
) -> list[int]:
    """The numbers of units that may be removed, ascending: 0, then multiples of ``group.heads``.

    Args:
        group: what is cut; at least one unit a head stays.
        round_to: the channels kept are a multiple of this, where a cut of the group can make them
            so; a group too narrow for that is cut evenly over its heads only.
        min_keep: the least that stays: channels, or below 1 a share of the group's.
        channels: channels of one unit.
        whole: units that the group had before it was first cut, which shares and width are of;
            None where it is whole.
    """
    whole = group.size if whole is None else whole
    # 0.07 of 100 is 7 units, also in floating point
    floor = math.ceil((min_keep * whole if min_keep < 1 else min_keep / channels) - 1e-9)
    cuts: Sequence[int] = range(group.heads, group.size - max(floor, group.heads) + 1, group.heads)
    if _roundable(group, round_to, channels, whole):
        cuts = [cut for cut in cuts if (group.size - cut) * channels % round_to == 0]
    return [0, *cuts]


def _roundable(group: ChannelGroup, round_to: int, channels: int, whole: int) -> bool:
    """Whether some cut of the whole group keeps a multiple of ``round_to`` channels."""
    return math.lcm(round_to, group.heads * channels) < whole * channels


def units_removed(group: ChannelGroup, ratio: float, allowed: Sequence[int] | None = None) -> int:
    """Units that ``ratio`` removes: the nearest count of ``allowed``, of two the larger.

    A ratio above 0 removes at least the smallest count above 0; a group that allows none gives 0.

    Args:
        allowed: what ``removable`` gives; where None, its counts for ``group`` alone: even over
            the heads and never all.
    """
    counts = [count for count in (removable(group) if allowed is None else allowed) if count]
    if ratio <= 0.0 or not counts:
        return 0
    # in units a head, so that a half is a half in floating point too
    wanted = ratio * (group.size // group.heads)
    return min(counts, key=lambda count: (abs(count / group.heads - wanted), -count))


def keep_best(scores: Tensor, group: ChannelGroup, removed: int) -> tuple[int, ...]:
    """Indices left when the ``removed`` lowest-scored units go, the same number from every head.

    Args:
        scores: ``[group.size]``, higher is kept; ties keep the lower index.
        removed: a multiple of ``group.heads``.
    """
    per_head = group.size // group.heads
    keep = per_head - removed // group.heads
    order = scores.reshape(group.heads, per_head).sort(dim=1, descending=True, stable=True).indices
    kept = order[:, :keep] + torch.arange(group.heads).unsqueeze(1) * per_head
    return tuple(sorted(kept.flatten().tolist()))


class Ranking:
    """The groups that may be pruned, each one's units in order of importance, how many may go.

    ``groups``: name -> group. ``scores``: name -> ``[size]`` float64, higher is kept.
    ``already_cut``: whether ``whole`` was given. ``min_keep``: as given.

    Args:
        model: the base network.
        importance: name of the importance.
        kinds: kinds of groups that may be pruned; all where None.
        protect: shell-style patterns of group names that are left alone.
        scope: score a unit over "all" modules of its group, or the "first" one only.
        batches: calibration images and labels, for the importances that need them.
        device: where calibration runs; None for where the network is.
        round_to: see ``removable``.
        min_keep: see ``removable``.
        seed: of the importance ``random``.
        whole: where ``model`` is already cut, name -> units that each group had before; see
            ``removable``. A group may then have none left to lose.

    Raises:
        UserError: an unknown importance or scope, one that needs calibration images and has none,
            a pattern that matches no group, no group left, or a multiple that none can keep.
    """

    def __init__(
        self,
        model: nn.Module,
        importance: str = "l2",
        kinds: Sequence[str] | None = None,
        protect: Sequence[str] = (),
        scope: str = "all",
        batches: Batches | None = None,
        device: torch.device | str | None = None,
        round_to: int = 1,
        min_keep: float = 0,
        seed: int = 0,
        whole: Mapping[str, int] | None = None,
    ):
        if importance not in IMPORTANCES:
            raise UserError(
                "pruning.importance", importance, f"expected one of {', '.join(IMPORTANCES)}"
            )
        if scope not in SCOPES:
            raise UserError("pruning.scope", scope, f"expected one of {', '.join(SCOPES)}")
        self.groups = _prunable(model, kinds, protect)
        score: Callable[..., Tensor] = IMPORTANCES[importance]
        if importance == "random":
            score = partial(random, seed=seed)
        statistics: tuple[Any, ...] = ()
        if importance in STATISTICS:
            if batches is None:
                raise UserError("pruning.importance", importance, "needs calibration images")
            found = STATISTICS[importance](model, self.groups.values(), batches, device, scope)
            statistics = (found,)
        self.scores = {
            name: score(model, group, scope, *statistics) for name, group in self.groups.items()
        }
        self.already_cut, self.min_keep = whole is not None, min_keep
        widths = {name: _channels(model, group) for name, group in self.groups.items()}
        if not self.already_cut and not any(
            _roundable(group, round_to, widths[name], group.size)
            for name, group in self.groups.items()
        ):
            most = max(group.size * widths[name] for name, group in self.groups.items())
            reason = f"no group can keep a multiple of it: the widest has {most} channels"
            raise UserError("pruning.round_to", round_to, reason)
        self._removable = {
            name: removable(group, round_to, min_keep, widths[name], (whole or {}).get(name))
            for name, group in self.groups.items()
        }

    def of_kinds(self, kinds: Sequence[str] | None) -> "Ranking":
        """This ranking with its groups of some kinds only; the whole one where it has none."""
        names = [
            name for name, group in self.groups.items() if kinds is None or group.kind in kinds
        ]
        if not names or len(names) == len(self.groups):
            return self
        few = copy.copy(self)
        few.groups = {name: self.groups[name] for name in names}
        few.scores = {name: self.scores[name] for name in names}
        return few

    def removable(self, name: str) -> list[int]:
        """The numbers of units that may be removed from a group, ascending, from 0 on."""
        return list(self._removable[name])

    def units(self, name: str, ratio: float) -> int:
        """Units that ``ratio`` removes from a group: see ``units_removed``."""
        return units_removed(self.groups[name], ratio, self._removable[name])

    def plan(self, removed: Mapping[str, int]) -> Plan:
        """The plan that removes so many of each group's least important units."""
        return Plan(
            {
                name: keep_best(self.scores[name], self.groups[name], count)
                for name, count in removed.items()
                if count
            }
        )


def _channels(model: nn.Module, group: ChannelGroup) -> int:
    """Channels of one unit, in the first producer with a weight."""
    producer = first_weight(model, group.producers)
    return model.get_submodule(producer).weight.shape[0] // group.size


def _prunable(
    model: nn.Module, kinds: Sequence[str] | None, protect: Sequence[str]
) -> dict[str, ChannelGroup]:
    groups = model.channel_groups()
    protected = set()
    for pattern in protect:
        matched = fnmatch.filter(groups, pattern)
        if not matched:
            raise UserError(
                "pruning.protect",
                pattern,
                f"matches no channel group; there are {', '.join(groups)}",
            )
        protected.update(matched)
    left = {
        name: group
        for name, group in groups.items()
        if name not in protected and (kinds is None or group.kind in kinds)
    }
    if not left:
        if any(kinds is None or group.kind in kinds for group in groups.values()):
            of = "" if kinds is None else f" of the kinds {', '.join(kinds)}"
            reason = f"leaves no channel group{of} to prune: expected fewer protected"
            raise UserError("pruning.protect", list(protect), reason)
        has = ", ".join(sorted({group.kind for group in groups.values()}))
        told = f"the kinds {has}" if has else "none: nothing declares channel_groups()"
        reason = f"no channel group is left to prune; this network has {told}"
        raise UserError("pruning.kinds", list(kinds or []), reason)
    return left
