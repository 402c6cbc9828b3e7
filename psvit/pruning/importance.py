"""How much each unit of a channel group matters, and which units a ratio keeps."""

import fnmatch
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup, Plan
from psvit.errors import UserError


def l2(model: nn.Module, group: ChannelGroup) -> Tensor:
    """L2 norm of each unit's filters, over all convolutions and linear layers that produce it.

    s_c = sqrt(sum over producers of ||W[c]||²): the norm of PrimeSVT (arXiv 2606.03428) and, most
    likely, PSViT. Returns ``[group.size]``, float64.
    """
    score = torch.zeros(group.size, dtype=torch.float64)
    for path in group.producers:
        weight = model.get_submodule(path).weight.detach()
        if weight.dim() > 1:
            score += weight.double().cpu().square().reshape(group.size, -1).sum(1)
    return score.sqrt()


IMPORTANCES = {"l2": l2}


def units_removed(group: ChannelGroup, ratio: float) -> int:
    """Units that ``ratio`` removes: the nearest count even over the heads, and never all.

    A ratio above 0 removes at least one unit a head; a group that has only one cannot be pruned
    and gives 0.
    """
    per_head = group.size // group.heads
    if ratio <= 0.0 or per_head == 1:
        return 0
    # floor(x + 1/2): round() would go to the even neighbour
    count = math.floor(ratio * per_head + 0.5)
    return group.heads * min(max(count, 1), per_head - 1)


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
    """The groups that may be pruned, and each one's channels in order of importance.

    Args:
        model: the base network.
        importance: name of the importance.
        kinds: kinds of groups that may be pruned; all where None.
        protect: shell-style patterns of group names that are left alone.

    Raises:
        UserError: an unknown importance, a pattern that matches no group, or no group left.
    """

    def __init__(
        self,
        model: nn.Module,
        importance: str = "l2",
        kinds: Sequence[str] | None = None,
        protect: Sequence[str] = (),
    ):
        if importance not in IMPORTANCES:
            raise UserError("pruning.importance", importance, f"expected one of {', '.join(IMPORTANCES)}")
        groups = model.channel_groups()
        protected = set()
        for pattern in protect:
            matched = fnmatch.filter(groups, pattern)
            if not matched:
                raise UserError(
                    "pruning.protect", pattern, f"matches no channel group; there are {', '.join(groups)}"
                )
            protected.update(matched)
        self.groups = {
            name: group for name, group in groups.items()
            if name not in protected and (kinds is None or group.kind in kinds)
        }
        if not self.groups:
            raise UserError(
                "pruning.kinds", list(kinds or []),
                f"no channel group is left to prune; this network has the kinds "
                f"{', '.join(sorted({group.kind for group in groups.values()}))}",
            )
        self._scores = {
            name: IMPORTANCES[importance](model, group) for name, group in self.groups.items()
        }

    def plan(self, removed: Mapping[str, int]) -> Plan:
        """The plan that removes so many of each group's least important units."""
        return Plan({
            name: keep_best(self._scores[name], self.groups[name], count)
            for name, count in removed.items()
            if count
        })
