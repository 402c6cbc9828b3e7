"""Reads the jobs of many runs: what each was to do, what it measured, how their configs differ."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

NONE = "none"
# why a job failed, in a line (run.py writes it)
FAILURE = "failure.txt"
# policies that prune nothing
UNPRUNED = (NONE, "sensitivity")
# policies whose plan no grid of ratios decides
GRIDLESS = (*UNPRUNED, "uniform", "global")
ROW_KEYS = ("name", "top1", "parameters", "memory_saving")
# sections of a config whose options change a network, or what is reported of it
SECTIONS = (
    "model",
    "dataset",
    "training",
    "trainer",
    "pruning",
    "finetune",
    "ckpt_path",
    "measure",
)
# options that change none, or have a column of their own
NO_SETTING = re.compile(
    r"(model|dataset|pruning)\.name"
    r"|dataset\.(root|download|num_workers|eval_batch_size)"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|log_every_n_steps|enable_.*)"
    r"|pruning\.(importance|recovery|rounds|budget|ratio|target_.*)"
)
# options that shape the base network, or what is measured of it
_OF_THE_BASE = re.compile(r"(?!pruning\.|finetune\.)")
# options that shape the uniform network which stands beside another policy's
_OF_THE_RIVAL = re.compile(
    r"(?!pruning\.|finetune\.)"
    r"|pruning\.(scope|kinds|protect|round_to|min_keep|calibration_images)$"
)


@dataclass
class Job:
    """A run folder, or what a failed job left of one."""

    folder: Path
    # the resolved config; {} where there is none
    config: dict[str, Any] = field(default_factory=dict)
    # results.json; {} where there is none
    results: dict[str, Any] = field(default_factory=dict)
    # why there are no results
    problem: str = ""
    # options in which it differs from other jobs of its model, dataset and policy, or its base
    # network from other policies' base networks
    settings: dict[str, str] = field(default_factory=dict)
    # likewise of its uniform network and other jobs' of its model and dataset
    rival: dict[str, str] = field(default_factory=dict)
    # options of its base network that differ from other jobs' of its model and dataset
    base: dict[str, str] = field(default_factory=dict)
    # its overrides but those of all jobs; its folder's name where there are none
    title: str = ""

    def fact(self, key: str, default: Any = None) -> Any:
        """What the results, or else the config's pruning section, say of the run."""
        about, pruning = self.results.get("run") or {}, self.section("pruning")
        found = (about.get(key), self.results.get(key), pruning.get(key))
        return next((value for value in found if value is not None), default)

    def section(self, name: str) -> dict[str, Any]:
        """A section of the config."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def policy(self) -> str:
        """The pruning policy; ``none`` where the job names none."""
        about = self.results.get("run") or {}
        return about.get("pruning") or self.section("pruning").get("name", NONE)

    @property
    def model(self) -> str:
        """The model's name; "" where it is unknown."""
        return (self.results.get("run") or {}).get("model") or self.section("model").get("name", "")

    @property
    def dataset(self) -> str:
        """The dataset's name; "" where it is unknown."""
        about = self.results.get("run") or {}
        return about.get("dataset") or self.section("dataset").get("name", "")

    @property
    def measured_on(self) -> str:
        """The dataset, with the split where it is not the test set: two that nobody compares."""
        split = (self.results.get("run") or {}).get("split") or "test"
        return self.dataset if split == "test" else f"{self.dataset} ({split})"

    @property
    def seed(self) -> int | None:
        """The seed; None where it is unknown."""
        return (self.results.get("run") or {}).get("seed", self.config.get("seed"))

    @cached_property
    def target(self) -> tuple[str, float | None]:
        """What the run was to save, for a reader, and as a number to sort by."""
        memory, others = self.fact("target_memory_saving"), self.fact("target_saving")
        if self.policy in UNPRUNED:
            return "", None
        if memory is None and others is None:
            drop = self.fact("target_accuracy_drop", self.fact("max_accuracy_drop"))
            if drop is not None:
                return f"drop ≤ {drop:g}", None
            ratio = self.section("pruning").get("ratio")
            return ("", None) if ratio is None else (f"ratio {percent(ratio)}", None)
        budget = self.fact("budget", "memory")
        shares = {}
        for name in budget if isinstance(budget, list) else [budget]:
            share = others.get(name) if isinstance(others, dict) else others
            shares[name] = memory if name == "memory" or share is None else share
        if list(shares) == ["memory"] and memory is not None:
            return percent(memory), memory
        texts = [f"{name} {percent(share)}" for name, share in shares.items() if share is not None]
        return ", ".join(texts), shares.get("memory")

    @cached_property
    def overrides(self) -> list[str]:
        """What Hydra was told for this job; [] where that is unknown."""
        return read_overrides(self.folder) or []


def read_overrides(folder: Path) -> list[str] | None:
    """What Hydra was told for the run in ``folder``; None where that is unknown.

    The run's own record holds. Hydra's file is that of the last command that named the folder, also
    of one that was refused there; it is read where there is no record: of a job that failed before
    it began, and of runs that older versions made.
    """
    try:
        record = json.loads((folder / "environment.json").read_text())
        if "overrides" in record:
            return None if record["overrides"] is None else list(map(str, record["overrides"]))
    except (OSError, ValueError, TypeError):
        pass
    try:
        said = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        return list(map(str, said or []))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return None


def percent(share: float) -> str:
    """A share as percent: 0.224 -> ``22.4 %``."""
    return f"{100 * share:.4g} %"


def find_jobs(folder: str | Path) -> list[Path]:
    """The run folders in ``folder``, or itself, in the order of their numbers.

    A job that failed counts: it holds what Hydra writes before a job starts.
    """
    folder = Path(folder)
    if any((folder / name).is_file() for name in ("results.json", ".hydra/overrides.yaml")):
        return [folder]
    if not folder.is_dir():
        return []
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    return [job for path in sorted(inside, key=_natural) for job in find_jobs(path)]


def read_job(folder: Path) -> Job:
    """A job's files. One that cannot be read is the job's ``problem``, not an error."""
    job = Job(folder)
    try:
        job.config = _load(folder / "config.yaml") or _load(folder / ".hydra" / "config.yaml")
        job.problem = read_failure(folder)
        if job.problem:
            return job
        if not (folder / "results.json").is_file():
            job.problem = "no results"
            return job
        results = json.loads((folder / "results.json").read_text())
        for row in results["rows"]:
            missing = [key for key in ROW_KEYS if row.get(key) is None]
            if missing:
                raise ValueError(f"a row lacks {', '.join(missing)}")
        job.results = results
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        job.problem = f"its files cannot be read: {' '.join(str(error).split())}"
    return job


def read_failure(folder: Path) -> str:
    """Why the job in ``folder`` failed; "" where it did not."""
    path = folder / FAILURE
    return path.read_text(errors="replace").strip() if path.is_file() else ""


def note_titles(jobs: Sequence[Job]) -> None:
    """Fill in ``title``: what tells a job from the others."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for job in jobs:
        own = [override for override in job.overrides if override not in shared]
        job.title = " ".join(own) or job.folder.name


def note_settings(jobs: Sequence[Job]) -> None:
    """Fill in ``settings``: else a mean over seeds would mix networks that were made differently.

    And ``rival``: the uniform networks beside all policies are one row where they are one network;
    and ``base``, likewise. ``ckpt_path`` may differ with the seed: base networks of several seeds.
    """
    alike: dict[tuple[str, ...], list[tuple[Job, dict[str, str]]]] = {}
    beside: dict[tuple[str, ...], list[tuple[Job, dict[str, str]]]] = {}
    bases: dict[tuple[str, ...], list[tuple[Job, dict[str, str]]]] = {}
    for job in jobs:
        flat = _flat({name: job.config[name] for name in SECTIONS if name in job.config})
        kept = {key: value for key, value in flat.items() if not NO_SETTING.fullmatch(key)}
        if job.target[0].startswith("drop"):
            kept.pop("pruning.max_accuracy_drop", None)
        if job.policy in GRIDLESS:
            kept.pop("pruning.ratios", None)
        alike.setdefault((job.model, job.measured_on, job.policy), []).append((job, kept))
        base = {key: value for key, value in kept.items() if _OF_THE_BASE.match(key)}
        bases.setdefault((job.model, job.measured_on), []).append((job, base))
        if job.policy not in UNPRUNED:
            rival = {key: value for key, value in kept.items() if _OF_THE_RIVAL.match(key)}
            if "pruning.kinds" in rival:
                rival["pruning.kinds"] = json.dumps(_uniform_kinds(job.section("pruning")))
            beside.setdefault((job.model, job.measured_on), []).append((job, rival))
    for members in bases.values():
        for job, different in _differences(members):
            job.base = different
    for members in beside.values():
        for job, different in _differences(members):
            job.rival = _of_all_seeds(job.base) | different
    for members in alike.values():
        for job, different in _differences(members):
            job.settings = _of_all_seeds(job.base) | different


def _of_all_seeds(base: dict[str, str]) -> dict[str, str]:
    """Without the checkpoint: one policy's, of several seeds, are one setting."""
    return {key: value for key, value in base.items() if key != "ckpt_path"}


def _uniform_kinds(pruning: dict[str, Any]) -> list[str]:
    """The kinds of groups that the uniform network cuts, as ``Ranking.of_kinds`` has it."""
    kinds, chosen = pruning["kinds"], pruning.get("uniform_kinds")
    return [kind for kind in kinds if chosen is None or kind in chosen] or kinds


def _differences(
    members: Sequence[tuple[Job, dict[str, str]]],
) -> list[tuple[Job, dict[str, str]]]:
    """Of each job's options those that have several values among the jobs."""
    values: dict[Any, set[str]] = {}
    for job, options in members:
        for key, value in options.items():
            values.setdefault(_name(key, job), set()).add(value)
    return [
        (job, {key: value for key, value in options.items() if len(values[_name(key, job)]) > 1})
        for job, options in members
    ]


def _name(key: str, job: Job) -> Any:
    return (key, job.seed) if key == "ckpt_path" else key


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _load(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts ``10`` after ``9``."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
