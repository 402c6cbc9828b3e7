"""Multirun folders as Hydra and the pipeline leave them, made up, without their networks."""

import json
from pathlib import Path
from typing import Any

import yaml

BASE_PARAMETERS = 1000


def row(name: str, policy: str, stage: str, top1: float, saving: float = 0.0) -> dict[str, Any]:
    parameters = round(BASE_PARAMETERS * (1 - saving))
    return {
        "name": name,
        "policy": policy,
        "stage": stage,
        "top1": top1,
        "top1_stderr": 0.8,
        "images": 360,
        "parameters": parameters,
        "memory_mb": parameters * 4e-6,
        "memory_saving": 1 - parameters / BASE_PARAMETERS,
        "published": None,
    }


def write_job(
    folder: Path,
    policy: str,
    seed: int,
    top1: dict[str, float] | None,
    target: float | None = 0.3,
    importance: str = "l2",
    recovery: str = "none",
    saving: float = 0.3,
    **options: Any,
) -> Path:
    """A job of a multirun.

    Args:
        top1: of ``base``, ``uniform`` (the rival), ``pruned``, ``recovered``, ``finetuned``; None
            for a job that failed.
        saving: of all but the base network.
        options: more of the config's pruning section; ``epochs`` are those of fine-tuning.
    """
    (folder / ".hydra").mkdir(parents=True)
    overrides = ["logger=none", f"pruning={policy}", f"seed={seed}"]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    epochs = options.pop("epochs", 4 if "finetuned" in (top1 or {}) else 0)
    chosen = {"importance": importance, "recovery": recovery, "budget": "memory", "rounds": 1}
    config = {
        "seed": seed,
        "model": {"name": "meta_spikeformer"},
        "dataset": {"name": "digits"},
        "finetune": {"epochs": epochs},
        "pruning": {"name": policy, "target_memory_saving": target, **chosen, **options},
    }
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    if top1 is None:
        return folder
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    names = {"pruned": "", "recovered": " + recovery", "finetuned": " + fine-tuning"}
    rows = [row("base", "none", "base", top1["base"])]
    if "uniform" in top1:
        rows.append(row("uniform", "uniform", "pruned", top1["uniform"], saving))
    for stage, suffix in names.items():
        if stage in top1:
            rows.append(row(policy + suffix, policy, stage, top1[stage], saving))
    about = {"name": "digits", "model": "meta_spikeformer", "dataset": "digits", "seed": seed}
    results = {
        "run": {**about, "pruning": policy, **chosen},
        "target_memory_saving": target,
        "rows": rows,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def change(folder: Path, edit: Any) -> None:
    """Edit a job's results.json."""
    results = json.loads((folder / "results.json").read_text())
    edit(results)
    (folder / "results.json").write_text(json.dumps(results))


def write_multirun(folder: Path) -> Path:
    """fine_grained and budgeted, three seeds, one target; one job of fine_grained failed.

    Drops of fine_grained 4, 6 (failed: seed 2); of budgeted 2, 3, 4, after recovery 1, 1, 1; of the
    uniform rival 10, 12, 14.
    """
    for seed, base in enumerate((96.0, 97.0, 98.0)):
        rival = base - 10 - 2 * seed
        found = {"base": base, "uniform": rival, "pruned": base - 4 - 2 * seed}
        write_job(folder / str(seed), "fine_grained", seed, found if seed < 2 else None)
        found = {"base": base, "uniform": rival, "pruned": base - 2 - seed, "recovered": base - 1}
        write_job(folder / str(3 + seed), "budgeted", seed, found, recovery="both")
    return folder
