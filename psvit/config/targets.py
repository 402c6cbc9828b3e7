"""What a run is to save, of which resource."""

from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError


def targets(pruning: DictConfig) -> dict[str, float | None]:
    """Resource -> share to save, None where only the accuracy limits it; {} for a fixed ratio."""
    memory, others = pruning.target_memory_saving, pruning.target_saving
    if memory is None and others is None and pruning.max_accuracy_drop is None:
        return {}
    if OmegaConf.is_dict(others):
        shares = {name: others.get(name, memory) for name in _budget(pruning)}
    else:
        shares = {name: memory if others is None else others for name in _budget(pruning)}
    if "memory" in shares:
        shares["memory"] = memory
    return shares


def check_targets(pruning: DictConfig) -> None:
    """Raise a UserError for a target that nothing would follow, or that is missing."""
    if pruning.name in ("none", "sensitivity"):
        return
    budget, others = _budget(pruning), pruning.target_saving
    for name in others if OmegaConf.is_dict(others) else ():
        if name == "memory":
            reason = "memory's target is pruning.target_memory_saving"
            raise UserError("pruning.target_saving", others, reason)
        if name not in budget:
            reason = f"expected {name} in pruning.budget, which has {', '.join(budget)}"
            raise UserError("pruning.target_saving", others, reason)
    if others is not None and not OmegaConf.is_dict(others) and budget == ["memory"]:
        raise UserError(
            "pruning.target_saving",
            others,
            "is for what else pruning.budget names, and it names memory alone: expected null and "
            "pruning.target_memory_saving, or another budget",
        )
    if pruning.max_accuracy_drop is None:
        shares = targets(pruning)
        missing = [name for name, share in shares.items() if share is None]
        if missing or (not shares and pruning.name != "uniform"):
            raise UserError(
                "pruning.target_memory_saving",
                None,
                f"expected a share in (0, 1) to save of {', '.join(missing or budget)}, or a "
                "pruning.max_accuracy_drop",
            )
        if not shares and pruning.rounds > 1:
            raise UserError(
                "pruning.rounds",
                pruning.rounds,
                "expected 1 with a fixed pruning.ratio; rounds go towards a target_memory_saving",
            )


def _budget(pruning: DictConfig) -> list[str]:
    return list(pruning.budget) if OmegaConf.is_list(pruning.budget) else [pruning.budget]
