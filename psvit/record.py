"""What a run has found: its results, its plan, its networks, and the files that hold them."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from psvit.cache import tensors_fingerprint
from psvit.channels import Plan
from psvit.data import ImageData
from psvit.files import write_csv, write_json
from psvit.measured import Measured
from psvit.provenance import code_state
from psvit.pruning import checkpoint
from psvit.pruning.allocation import Decision
from psvit.reuse import Reuse

_log = logging.getLogger(__name__)

# PSViT, arXiv 2606.03257, abstract: ImageNet-1K
PUBLISHED = {
    "base": {"top1": 73.3, "drop": 0.0, "memory_saving": 0.0},
    "fine_grained": {"top1": 70.3, "drop": 3.0, "memory_saving": 0.224},
    "fine_grained + fine-tuning": {"top1": 72.8, "drop": 0.5, "memory_saving": 0.224},
}


class Record:
    """Collects a run's results and writes its files.

    Args:
        cfg: the composed config.
        data: the images.
        folder: where the files go.
        device: where networks are measured.
        reuse: what the run has measured before it was stopped.

    Attributes:
        results: what ``results.json`` holds.
    """

    def __init__(
        self, cfg: DictConfig, data: ImageData, folder: Path, device: torch.device, reuse: Reuse
    ):
        self.cfg, self.data, self.folder, self.device = cfg, data, folder, device
        self.reuse = reuse
        # whose images the table's networks are measured on
        self.split = "test" if cfg.test else "validation"
        self.results: dict[str, Any] = {
            "run": {
                "name": cfg.name,
                "model": cfg.model.name,
                "dataset": cfg.dataset.name,
                "pruning": cfg.pruning.name,
                "seed": cfg.seed,
                "split": self.split,
                **{key: cfg.pruning.get(key) for key in ("importance", "recovery", "rounds")},
                "budget": OmegaConf.to_container(cfg).get("pruning", {}).get("budget"),
            },
            "target_memory_saving": cfg.pruning.get("target_memory_saving"),
            "seconds": {},
            "rows": [],
        }
        self.measured = Measured(cfg, data, folder, device)
        # round -> what was decided
        self._decisions: dict[int, Decision] = {}
        # the commit of the code that a long run started with, whatever becomes of it meanwhile
        code_state()

    def add_row(self, name: str, network: nn.Module, policy: str, stage: str) -> None:
        """Measure a network: a row of the final table.

        On the test split, or with ``test=false`` on the validation split.

        Args:
            name: of the row.
            network: what is measured.
            policy: that made the network's plan.
            stage: ``base``, ``pruned``, ``recovered`` or ``finetuned``.
        """
        with self.timed("measures"):
            found = self.reuse.own_value(
                "row",
                lambda: self.measured.add(name, network),
                name=name,
                network=tensors_fingerprint(network.state_dict()),
                model=network.spec,
                measure=self.cfg.measure,
                split=self.split,
            )
        # also where it was measured before the run was stopped
        self.measured.remember(name, network)
        self.results["rows"].append(
            {
                "name": name,
                "policy": policy,
                "stage": stage,
                **found,
                "published": PUBLISHED.get(name) if self._as_published(name) else None,
            }
        )
        self.write()

    def time_networks(self) -> None:
        """Time the networks of all rows, in turn."""
        with self.timed("timing"):
            self.results["timing"] = self.measured.time()
        self.write()

    def _as_published(self, name: str) -> bool:
        """Whether the paper has a row for what this run prunes."""
        target = self.cfg.pruning.get("target_memory_saving")
        return name == "base" or target == PUBLISHED["fine_grained"]["memory_saving"]

    def save_plan(self, network: nn.Module, plan: Plan, decision: Decision, number: int) -> None:
        """Write ``plan.yaml`` and, for every round so far, why: ``plan.csv``, ``plan_log.csv``.

        The plan is against the unpruned network, also where ``network`` came pruned.

        Args:
            network: the base network.
            plan: of all rounds so far, against it.
            decision: of the last one.
            number: that round's, from 1 on.
        """
        original, whole = checkpoint.against_original(network, plan)
        whole.save(self.folder / "plan.yaml", original.channel_groups(), self.cfg.pruning.name)
        self._decisions[number] = decision
        decisions = self._decisions.items()
        for name, tables in (
            ("plan.csv", {number: each.why for number, each in decisions}),
            ("plan_log.csv", {n: each.log for n, each in decisions if each.log is not None}),
        ):
            if tables:
                table = pd.concat(tables, names=["round"]).reset_index(level="round")
                write_csv(self.folder / name, table)

    def add_sensitivity(self, name: str, summary: dict[str, Any]) -> None:
        """Note how a sensitivity table, the file ``name``, was made."""
        self.results.setdefault("sensitivity", {})[name] = summary
        self.write()

    def save_network(self, name: str, network: nn.Module, plan: Plan | None) -> None:
        """Write ``network``, the last row's, to the folder ``name``: all to use it elsewhere."""
        origin = {"seed": self.cfg.seed, "run": self.cfg.name}
        if name != "base":
            origin["base"] = checkpoint.weights_digest(self.cfg.ckpt_path or self.folder / "base")
        rows = self.results["rows"]
        checkpoint.save(
            network,
            self.folder / name,
            plan,
            preprocessing=self.data.preprocessing,
            classes=list(self.data.class_names),
            metrics={
                "dataset": self.cfg.dataset.name,
                "split": self.split,
                **{key: rows[-1][key] for key in ("images", "top1", "top1_stderr")},
                "memory_saving": rows[-1]["memory_saving"],
                "drop": rows[0]["top1"] - rows[-1]["top1"],
            },
            provenance=origin,
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Log a stage's beginning and end, and add its seconds to the results."""
        _log.info("%s …", stage)
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        seconds = self.results["seconds"]
        seconds[stage] = round(seconds.get(stage, 0.0) + took, 2)
        _log.info("%s took %.1f s", stage, took)

    def write(self) -> None:
        """Write ``results.json``."""
        write_json(self.folder / "results.json", self.results)
