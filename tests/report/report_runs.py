"""Run folders as the pipeline leaves them, made up."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from psvit.report.files import OPERATIONS_COLUMNS, SENSITIVITY_COLUMNS, UNIFORM_COLUMNS

RATIOS = (0.1, 0.25, 0.4, 0.55, 0.7)
CONVOLUTION = [("conv.hidden", "hidden", 2), ("mlp.hidden", "hidden", 4)]
ATTENTION = [
    ("attention.query_key", "query_key", 1),
    ("attention.value", "value", 1),
    ("attention.query.hidden", "hidden", 1),
    ("attention.key.hidden", "hidden", 1),
    ("attention.value.hidden", "hidden", 1),
    ("attention.projection.hidden", "hidden", 1),
    ("mlp.hidden", "hidden", 4),
]
PUBLISHED = {
    "base": {"top1": 73.3, "drop": 0.0, "memory_saving": 0.0},
    "fine_grained": {"top1": 70.3, "drop": 3.0, "memory_saving": 0.224},
    "fine_grained + fine-tuning": {"top1": 72.8, "drop": 0.5, "memory_saving": 0.224},
}
BASE_PARAMETERS = 15_112_208


def channel_groups(attention_blocks: tuple[int, int] = (6, 2)) -> dict[str, tuple[str, int]]:
    """name -> (kind, size) of a Meta-SpikeFormer: 64 groups, or 8 with no attention blocks."""
    blocks = [(1, 1, 32), (1, 2, 64), (2, 1, 128), (2, 2, 128)]
    blocks += [(3, i + 1, 256) for i in range(attention_blocks[0])]
    blocks += [(4, i + 1, 360) for i in range(attention_blocks[1])]
    groups = {}
    for stage, block, width in blocks:
        for role, kind, factor in CONVOLUTION if stage < 3 else ATTENTION:
            groups[f"stage{stage}.block{block}.{role}"] = (kind, factor * width)
    return groups


def sensitivity(groups: dict[str, tuple[str, int]], seed: int = 0) -> pd.DataFrame:
    """Most groups barely matter; early and query_key ones collapse; a few gain a little."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, (name, (kind, size)) in enumerate(groups.items()):
        fragile = rng.lognormal(1.0 if kind == "query_key" or index < 3 else -1.0, 1.1)
        for ratio in RATIOS:
            removed = int(ratio * size)
            drop = min(85.0, fragile * 25 * ratio**3) + rng.normal(0, 0.25)
            parameters = BASE_PARAMETERS - removed * 700
            saving = 1 - parameters / BASE_PARAMETERS
            rows.append(
                (
                    name,
                    kind,
                    size,
                    ratio,
                    removed,
                    parameters,
                    saving,
                    360,
                    drop,
                    0.3,
                    0.1 + drop / 20,
                )
            )
    return pd.DataFrame(rows, columns=SENSITIVITY_COLUMNS)


def uniform() -> pd.DataFrame:
    rows = []
    for ratio in (0.0, *RATIOS):
        saving = 0.75 * ratio
        parameters = round(BASE_PARAMETERS * (1 - saving))
        rows.append(
            (
                ratio,
                parameters,
                parameters * 4.02 / 1e6,
                saving,
                360,
                97.0 - 120 * ratio**2.5,
                0.1 + 4 * ratio**2,
            )
        )
    return pd.DataFrame(rows, columns=UNIFORM_COLUMNS)


def results(names: tuple[str, ...] = ("base", "uniform", *list(PUBLISHED)[1:])) -> dict:
    measured = [97.5, 88.5, 95.25, 97.0]
    top1 = dict(zip(["base", "uniform", *list(PUBLISHED)[1:]], measured, strict=True))
    rows = []
    for name in names:
        saving = 0.0 if name == "base" else 0.226
        parameters = round(BASE_PARAMETERS * (1 - saving))
        rows.append(
            {
                "name": name,
                "top1": top1[name],
                "top1_stderr": 0.82,
                "loss": 0.12,
                "images": 360,
                "parameters": parameters,
                "memory_mb": parameters * 4.02 / 1e6,
                "memory_saving": saving,
                "published": PUBLISHED.get(name),
            }
        )
    return {
        "run": {
            "name": "digits",
            "model": "meta_spikeformer",
            "dataset": "digits",
            "pruning": names[-1].split(" ")[0],
            "seed": 0,
        },
        "target_memory_saving": 0.224,
        "validation": {"top1": 97.0, "loss": 0.1, "images": 360},
        "rows": rows,
    }


def operations() -> pd.DataFrame:
    """Two layers of two networks."""
    rows = [
        (name, layer, "spikes", macs * share, 0.2 * macs * share, 1e-9 * macs * share)
        for name, share in (("base", 1.0), ("fine_grained + fine-tuning", 0.5))
        for layer, macs in (("stage1.block1.mlp.conv1", 3e6), ("head.fc", 1e4))
    ]
    return pd.DataFrame(rows, columns=OPERATIONS_COLUMNS)


def plan(groups: dict[str, tuple[str, int]], seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    entries = {}
    for name, (_, size) in groups.items():
        removed = int(rng.choice([0, *RATIOS], p=[0.25, 0.15, 0.2, 0.2, 0.1, 0.1]) * size)
        kept = sorted(rng.choice(size, size - removed, replace=False).tolist())
        entries[name] = {"size": size, "kept": kept}
    return {"policy": "fine_grained", "groups": entries}


def write_run(folder: Path, groups: dict[str, tuple[str, int]] | None = None) -> Path:
    """A whole run folder of ``pruning=fine_grained``, but for its networks."""
    groups = groups or channel_groups()
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed": 0, "tags": ["dev"], "pruning": {"target_memory_saving": 0.224}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps(results()))
    sensitivity(groups).to_csv(folder / "sensitivity.csv", index=False)
    uniform().to_csv(folder / "uniform.csv", index=False)
    operations().to_csv(folder / "operations.csv", index=False)
    lines = [f"  {name}: {json.dumps(entry)}" for name, entry in plan(groups)["groups"].items()]
    (folder / "plan.yaml").write_text("\n".join(["policy: fine_grained", "groups:", *lines]) + "\n")
    return folder
