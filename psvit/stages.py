"""The stages of a run: what each one does, and the files it leaves in the run's folder."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from psvit.channels import Plan
from psvit.data import ImageData
from psvit.files import write_json
from psvit.measure.accuracy import evaluate
from psvit.measure.footprint import memory_mb, memory_saving, parameters
from psvit.pruning import allocation, checkpoint, masked, prune, pruned_parameters
from psvit.pruning.budgeted import budgeted
from psvit.pruning.prioritized import prioritized
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.sensitivity import measure_sensitivity
from psvit.setup import rank_channels
from psvit.training.callbacks import PruneBeforeFit
from psvit.training.fit import fit
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

_log = logging.getLogger(__name__)

# PSViT, arXiv 2606.03257, abstract: SDT-V2 on ImageNet-1K
PUBLISHED = {
    "base": {"top1": 73.3, "drop": 0.0, "memory_saving": 0.0},
    "fine_grained": {"top1": 70.3, "drop": 3.0, "memory_saving": 0.224},
    "fine_grained + fine-tuning": {"top1": 72.8, "drop": 0.5, "memory_saving": 0.224},
}


class Stages:
    """One run: its config, its data, and what it has found so far.

    Args:
        cfg: the composed config.
        data: the images.
        folder: where the files go.
        loggers: Lightning's loggers.
    """

    def __init__(self, cfg: DictConfig, data: ImageData, folder: Path, loggers: list[Logger]):
        self.cfg, self.data, self.folder, self.loggers = cfg, data, folder, loggers
        on_gpu = cfg.trainer.accelerator in ("gpu", "cuda")
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.results: dict[str, Any] = {
            "run": {
                "name": cfg.name,
                "model": cfg.model.name,
                "dataset": cfg.dataset.name,
                "pruning": cfg.pruning.name,
                "seed": cfg.seed,
            },
            "target_memory_saving": cfg.pruning.get("target_memory_saving"),
            "seconds": {},
            "rows": [],
        }

    def train_base(self, network: nn.Module) -> nn.Module:
        """Train the base network and save it under ``base/``."""
        with self._timed("training"):
            recipe = Recipe(epochs=self.cfg.trainer.max_epochs, **self.cfg.training)
            network = self._fit(network, recipe, "base")
            self.save_network("base", network, None)
        return network

    def finetune(self, network: nn.Module, plan: Plan, pruned: nn.Module) -> nn.Module:
        """Prune a copy of ``network`` inside Lightning and train on from ``pruned``'s weights."""
        with self._timed("fine-tuning"):
            recipe = Recipe(**self.cfg.finetune)
            callback = PruneBeforeFit(plan, pruned.state_dict())
            return self._fit(
                copy.deepcopy(network),
                recipe,
                "finetune",
                [callback],
                teacher=network if recipe.distills else None,
            )

    def plan(self, network: nn.Module, ranking: Ranking, sensitivity: pd.DataFrame | None) -> Plan:
        """Step 3: what goes from each group, by the config's policy -> ``plan.csv``."""
        pruning = self.cfg.pruning
        target = pruning.target_memory_saving
        if pruning.name == "fine_grained":
            found = allocation.fine_grained(
                network,
                ranking,
                sensitivity,
                self.results["validation"]["loss"],
                target,
                pruning.large_share,
            )
            plan, why = found.plan, found.why
        elif pruning.name == "prioritized":
            plan, why = prioritized(
                network,
                ranking,
                lambda cut: self._validation_top1(network, cut),
                list(pruning.ratios),
                target,
                pruning.max_accuracy_drop,
            )
        else:
            plan, why = budgeted(
                network,
                lambda current: rank_channels(self.cfg, self.data, current),
                lambda current, of, number: self._round(network, current, of, number, sensitivity),
                lambda pruned, cut: self.recover(pruned, network, cut),
                target,
                pruning.rounds,
            )
        why.to_csv(self.folder / "plan.csv", index=False)
        reached = memory_saving(pruned_parameters(network, plan), parameters(network))
        if reached < target:
            _log.warning(
                "the plan saves %.2f %%, less than pruning.target_memory_saving: "
                "pruning.max_accuracy_drop allowed no more",
                100 * reached,
            )
        return plan

    def _validation_top1(self, network: nn.Module, plan: Plan) -> float:
        with masked(network, plan):
            return evaluate(network, self.data.val_dataloader(), self.device).top1

    def _round(
        self,
        network: nn.Module,
        current: nn.Module,
        ranking: Ranking,
        number: int,
        first: pd.DataFrame,
    ) -> pd.DataFrame:
        """The sensitivity table of a round; the first round's is step 2's."""
        if number == 1:
            return first
        return self.sensitivity(current, ranking, f"sensitivity_round{number}.csv", network)

    def recover(self, pruned: nn.Module, network: nn.Module, plan: Plan) -> nn.Module:
        """A copy of ``pruned``, mended on calibration images of the training split."""
        pruning = self.cfg.pruning
        with self._timed("recovery"):
            batches = self.data.calibration_dataloader(pruning.calibration_images)
            return recover(
                copy.deepcopy(pruned),
                network,
                plan,
                [images for images, _ in batches],
                pruning.recovery,
                pruning.ridge,
                self.device,
            )

    def uniform_curve(self, network: nn.Module, ranking: Ranking) -> None:
        """Step 1: the whole network pruned at each ratio of the grid -> ``uniform.csv``."""
        rows = []
        with self._timed("uniform curve"):
            for ratio in [0.0, *self.cfg.pruning.ratios]:
                pruned = prune(network, allocation.uniform(ranking, ratio))
                tally = evaluate(pruned, self.data.val_dataloader(), self.device)
                count = parameters(pruned)
                rows.append(
                    {
                        "ratio": ratio,
                        "parameters": count,
                        "memory_mb": memory_mb(pruned),
                        "memory_saving": memory_saving(count, parameters(network)),
                        "images": tally.images,
                        "top1": tally.top1,
                        "loss": tally.loss,
                    }
                )
                pd.DataFrame(rows).to_csv(self.folder / "uniform.csv", index=False)
                _log.info(
                    "uniform %.2f: %.2f %% of parameters saved, validation top-1 %.2f %%",
                    ratio,
                    100 * rows[-1]["memory_saving"],
                    tally.top1,
                )
        self.results["validation"] = {name: rows[0][name] for name in ("top1", "loss", "images")}
        self._write_results()

    def sensitivity(
        self,
        network: nn.Module,
        ranking: Ranking,
        name: str = "sensitivity.csv",
        reference: nn.Module | None = None,
    ) -> pd.DataFrame:
        """Step 2: each group alone at each ratio, on the validation split -> the file ``name``."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with self._timed("sensitivity"), Progress(*columns) as bar:
            task = bar.add_task("sensitivity", total=None)
            return measure_sensitivity(
                network,
                self.data.val_dataloader(),
                list(self.cfg.pruning.ratios),
                ranking,
                self.folder / name,
                self.device,
                on_row=lambda done, total: bar.update(task, completed=done, total=total),
                reference=reference,
            )

    def add_row(self, name: str, network: nn.Module) -> None:
        """Measure a network on the test split: a row of the final table."""
        tally = evaluate(network, self.data.test_dataloader(), self.device)
        rows = self.results["rows"]
        base = rows[0]["parameters"] if rows else parameters(network)
        rows.append(
            {
                "name": name,
                **tally.as_dict(),
                "parameters": parameters(network),
                "memory_mb": memory_mb(network),
                "memory_saving": memory_saving(parameters(network), base),
                "published": PUBLISHED.get(name) if self._as_published(name) else None,
            }
        )
        self._write_results()

    def _as_published(self, name: str) -> bool:
        """Whether the paper has a row for what this run prunes."""
        target = self.cfg.pruning.get("target_memory_saving")
        return name == "base" or target == PUBLISHED["fine_grained"]["memory_saving"]

    def save_plan(self, network: nn.Module, plan: Plan) -> None:
        """Write ``plan.yaml``: against the unpruned network, also where ``network`` is pruned."""
        original, plan = checkpoint.against_original(network, plan)
        plan.save(self.folder / "plan.yaml", original.channel_groups(), self.cfg.pruning.name)

    def save_network(self, name: str, network: nn.Module, plan: Plan | None) -> None:
        """Write ``network`` to the folder ``name``, with all it takes to use it elsewhere."""
        checkpoint.save(
            network,
            self.folder / name,
            plan,
            preprocessing=self.data.preprocessing,
            classes=list(self.data.class_names),
            provenance={"seed": self.cfg.seed, "run": self.cfg.name},
        )

    def _fit(
        self,
        network: nn.Module,
        recipe: Recipe,
        prefix: str,
        callbacks: Sequence[Callback] = (),
        teacher: nn.Module | None = None,
    ) -> nn.Module:
        module = Classifier(network, recipe, self.data.num_classes, prefix, teacher)
        return fit(module, self.data, self.cfg.trainer, self.folder, self.loggers, callbacks)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        _log.info("%s …", stage)
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        seconds = self.results["seconds"]
        seconds[stage] = round(seconds.get(stage, 0.0) + took, 2)
        _log.info("%s took %.1f s", stage, took)

    def _write_results(self) -> None:
        write_json(self.folder / "results.json", self.results)
