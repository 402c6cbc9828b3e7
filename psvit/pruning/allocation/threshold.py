"""One threshold of importance for all groups, or for each kind of block."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup, Plan
from psvit.errors import UserError
from psvit.pruning.allocation.budget import Budget, option
from psvit.pruning.allocation.decision import Decision, explain
from psvit.pruning.ranking import Ranking

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: scores / scores.mean().clamp(min=1e-30),
    "max": lambda scores: scores / scores.max().clamp(min=1e-30),
}


def global_threshold(
    model: nn.Module, ranking: Ranking, budget: Budget, normalize: str, isomorphic: bool
) -> Decision:
    """Remove the least important share of all units, wherever they are.

    Scores of different groups compare only after normalising, or among groups of one structure:
    with ``isomorphic`` the share is taken within each structure (Isomorphic Pruning, arXiv
    2407.04616). A group loses as many units as lie below the threshold, rounded down to a number
    that may go: even over its heads, and never all.

    Args:
        model: the base network.
        ranking: scores, and how many units may go.
        budget: what is to be saved; the smallest share that does is taken.
        normalize: of ``NORMALIZERS``: what a group's scores are divided by.
        isomorphic: a threshold for each structure.

    Raises:
        UserError: no threshold meets the budget.
    """
    scores = {name: NORMALIZERS[normalize](ranking.scores[name]) for name in ranking.groups}
    classes: dict[object, list[str]] = {}
    for name, group in ranking.groups.items():
        classes.setdefault(structure(model, group) if isomorphic else None, []).append(name)
    pooled = [(names, _owners([scores[name] for name in names])) for names in classes.values()]

    def plan_at(share: float) -> Plan:
        removed = {}
        for names, owners in pooled:
            least = owners[: round(share * len(owners))].bincount(minlength=len(names))
            for name, below in zip(names, least.tolist(), strict=True):
                removed[name] = max(n for n in ranking.removable(name) if n <= below)
        return ranking.plan(removed)

    low, high = 0.0, 1.0
    if not budget.met(plan_at(high)):
        resource, target = budget.scarcest(plan_at(high))
        raise UserError(
            option(resource), target, f"no threshold saves as much of {resource}; lower the target"
        )
    for _ in range(24):
        middle = (low + high) / 2
        if budget.met(plan_at(middle)):
            high = middle
        else:
            low = middle
    plan = plan_at(high)
    return Decision(plan, explain(model, ranking, plan))


def _owners(scores: list[Tensor]) -> Tensor:
    """Which of the groups each unit belongs to, the least important unit first.

    Equal scores (silent channels, equal batch norms) go from all groups alike, each in proportion
    to its size: one threshold between them would take all or none.
    """
    of_group = [torch.full((len(own),), index) for index, own in enumerate(scores)]
    share = [(torch.arange(len(own)) + 0.5) / len(own) for own in scores]
    values, owners, shares = (
        torch.cat(parts) for parts in ([own.sort().values for own in scores], of_group, share)
    )
    order = shares.argsort(stable=True)
    return owners[order[values[order].argsort(stable=True)]]


def structure(model: nn.Module, group: ChannelGroup) -> tuple:
    """What groups of one structure have in common: their kind, and what makes and reads them."""

    def describe(path: str) -> tuple:
        module = model.get_submodule(path)
        kernel = getattr(module, "kernel_size", None)
        depthwise = getattr(module, "groups", 1) > 1
        return type(module).__name__, kernel, depthwise

    return (
        group.kind,
        tuple(describe(path) for path in group.producers),
        tuple(describe(path) for path in group.consumers),
    )
