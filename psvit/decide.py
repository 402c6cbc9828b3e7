"""Step 3: what goes from each channel group, by the policy that the config names."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from psvit.cache import tensors_fingerprint
from psvit.channels import Plan
from psvit.config.targets import targets
from psvit.errors import UserError
from psvit.files import copy_whole, read_json, write_json
from psvit.pruning import allocation
from psvit.pruning.allocation import Budget, Decision, largest_cut
from psvit.pruning.ranking import Ranking
from psvit.setup import reach
from psvit.stages import Stages


def decide(stages: Stages, network: nn.Module, budget: Budget, number: int) -> Decision:
    """The policy's plan for ``network``, within ``pruning.max_accuracy_drop`` where it is given.

    A run that goes on takes the plan that it had made, and the tables that the plan was made from.

    Args:
        stages: measures what the policy asks for.
        network: the network to cut; in a later round one that is already cut.
        budget: what is to be saved of ``network``.
        number: of the round.

    Raises:
        UserError: the budget cannot be met.
    """
    before = len(stages.tables)

    def make(folder: Path) -> None:
        _decide(stages, network, budget).save(folder)
        found = stages.record.results.get("sensitivity", {})
        for name in stages.tables[before:]:
            copy_whole(stages.folder / name, folder / name)
            write_json((folder / name).with_suffix(".json"), found[name])

    entry = stages.reuse.own(
        "plan",
        make,
        network=tensors_fingerprint(network.state_dict()),
        model=network.spec,
        base=tensors_fingerprint(stages.base.state_dict()),
        pruning=stages.cfg.pruning,
        round=number,
    )
    stages.tables[before:] = sorted(path.name for path in entry.glob("sensitivity*.csv"))
    for name in stages.tables[before:]:
        copy_whole(entry / name, stages.folder / name)
        stages.record.add_sensitivity(name, read_json((entry / name).with_suffix(".json")))
    return Decision.load(entry)


def _decide(stages: Stages, network: nn.Module, budget: Budget) -> Decision:
    pruning = stages.cfg.pruning
    solve = _POLICIES[pruning.name](stages, network)
    if pruning.max_accuracy_drop is None or pruning.name == "prioritized":
        return solve(budget)
    return allocation.within_accuracy(
        solve,
        budget,
        lambda plan: stages.validation_top1(network, plan),
        pruning.max_accuracy_drop,
    )


Solve = Callable[[Budget], Decision]


def _uniform(stages: Stages, network: nn.Module) -> Solve:
    pruning, ranking = stages.cfg.pruning, stages.rank(network)
    names = allocation.large_groups(network, ranking, pruning.large_share)

    def solve(budget: Budget) -> Decision:
        if budget.targets:
            _, plan = allocation.uniform_at(ranking, budget, names)
        else:
            plan = allocation.uniform(ranking, pruning.ratio, names)
        return Decision(plan, allocation.explain(network, ranking, plan))

    return solve


def _fine_grained(stages: Stages, network: nn.Module) -> Solve:
    ranking = stages.rank(network)
    table = stages.sensitivity(network, ranking)
    base_loss = stages.divergence(network).loss
    share = stages.cfg.pruning.large_share
    return lambda budget: allocation.fine_grained(network, ranking, budget, table, base_loss, share)


def _prioritized(stages: Stages, network: nn.Module) -> Solve:
    # PrimeSVT's rule measures for itself, on the network as it is being pruned; it knows of no
    # recovery, which comes behind its plan where the config asks for one
    pruning = stages.cfg.pruning
    drop = 100.0 if pruning.max_accuracy_drop is None else pruning.max_accuracy_drop
    return lambda budget: allocation.prioritized(
        network,
        stages.rank(network),
        budget,
        lambda plan: stages.validation_top1(network, plan, mended=False),
        list(pruning.ratios),
        drop,
    )


def _budgeted(stages: Stages, network: nn.Module) -> Solve:
    measured: list[pd.DataFrame] = []

    def measure(current: nn.Module, ranking: Ranking) -> pd.DataFrame:
        # the uncut network's table serves every budget that is tried
        if current is not network:
            return stages.sensitivity(current, ranking)
        if not measured:
            measured.append(stages.sensitivity(current, ranking))
        return measured[0]

    return lambda budget: allocation.budgeted(
        network,
        budget,
        stages.rank,
        measure,
        partial(stages.recovered, network=network),
        lambda cut: stages.divergence(cut).kl,
        stages.cfg.pruning.max_steps,
        0.0 if network is stages.base else stages.divergence(network).kl,
    )


def _global(stages: Stages, network: nn.Module) -> Solve:
    pruning, ranking = stages.cfg.pruning, stages.rank(network)
    return lambda budget: allocation.global_threshold(
        network, ranking, budget, pruning.normalize, pruning.isomorphic
    )


_POLICIES: dict[str, Callable[[Stages, nn.Module], Solve]] = {
    "uniform": _uniform,
    "fine_grained": _fine_grained,
    "prioritized": _prioritized,
    "budgeted": _budgeted,
    "global": _global,
}


def make_budget(stages: Stages, network: nn.Module, ranking: Ranking) -> Budget:
    """The whole budget, against the base network."""
    shares = targets(stages.cfg.pruning)
    meters = {
        resource: allocation.make_meter(network, resource, stages.few_images) for resource in shares
    }
    budget = Budget(network, {name: share or 1.0 for name, share in shares.items()}, meters)
    if None in shares.values():
        # what cannot be saved need not be tried
        most = budget.savings(largest_cut(ranking, *reach(stages.cfg.pruning, network, ranking)))
        found = {name: most[name] if share is None else share for name, share in shares.items()}
        nothing = [name for name, share in found.items() if share <= 0.0]
        if nothing:
            # times of a small network vary by more
            reason = f"expected what cuts save: the largest one saves nothing of {nothing[0]}"
            raise UserError("pruning.budget", list(shares), reason)
        budget = budget.towards(found)
    return budget


def one_ratio_plan(stages: Stages, ranking: Ranking, budget: Budget) -> Plan:
    """The cut by the smallest single ratio that meets the budget; see ``uniform_at``.

    It is kept: where the budget is of time, a run that goes on would find another one.
    """
    kept = stages.reuse.own_value(
        "one_ratio",
        lambda: dict(allocation.uniform_at(ranking, budget)[1]),
        network=tensors_fingerprint(budget.network.state_dict()),
        model=budget.network.spec,
        pruning=stages.cfg.pruning,
    )
    return Plan(kept)


def round_budget(
    stages: Stages, whole: Budget, plan: Plan, network: nn.Module, share: float
) -> Budget | None:
    """What is left to save of ``network``, cut by ``plan`` so far, to go ``share`` of the way.

    Each round saves the same part of what the one before it left, so that none is asked for more
    than another: 3 rounds to 70 % save 33 % each.

    Returns:
        None where the cuts so far have saved it already.
    """
    goals = {
        # the whole way is the target to the bit
        resource: target if share == 1.0 else 1.0 - (1.0 - target) ** share
        for resource, target in whole.targets.items()
    }
    if network is whole.network:
        return whole.towards(goals)
    meters = {
        resource: allocation.make_meter(network, resource, stages.few_images) for resource in goals
    }
    spent = {
        # what was mended fires as its weights say now, and not as the base network cut by the plan
        resource: meter(Plan()) if resource == "synops" else whole.spent(resource, plan)
        for resource, meter in meters.items()
    }
    left = {
        # a network that fell silent has no spikes left to save
        resource: 1.0 - whole.base[resource] * (1.0 - goal) / spent[resource]
        if spent[resource]
        else 0.0
        for resource, goal in goals.items()
    }
    if left and max(left.values()) <= 0.0:
        return None
    return Budget(network, {resource: max(part, 1e-6) for resource, part in left.items()}, meters)
