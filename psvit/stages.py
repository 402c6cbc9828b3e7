"""The stages of a run: what each one does, and the files it leaves in the run's folder."""

import copy
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning import Callback, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from psvit.cache import tensors_fingerprint
from psvit.channels import Plan
from psvit.console import progress
from psvit.data import ImageData
from psvit.files import copy_whole, read_json, write_csv
from psvit.measure.accuracy import Tally, evaluate
from psvit.measure.firing import diagnose
from psvit.processes import from_first, rank
from psvit.pruning import masked, prune
from psvit.pruning.allocation import Decision
from psvit.pruning.analysis import SensitivityOptions, analyse
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.uniform_curve import measure_uniform
from psvit.record import Record
from psvit.reuse import TRAINED_BY, WEIGHTS, Reuse, keep_weights, with_kept_weights
from psvit.setup import mends_candidates, rank_channels
from psvit.training.callbacks import PruneBeforeFit
from psvit.training.fit import fit
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

_log = logging.getLogger(__name__)

# enough to count operations and take times on
FEW_IMAGES = 32
# enough for the firing rate of a layer
DIAGNOSED_IMAGES = 256


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
        self.reuse = Reuse(cfg, data, folder)
        self.record = Record(cfg, data, folder, self.device, self.reuse)
        # the network that all is compared with, once it is trained
        self.base: nn.Module
        # whom each config group follows; fine-tuning, where it names nobody, the base network
        self.teachers: dict[str, nn.Module | None] = {"training": None, "finetune": None}
        self.tables: list[str] = []  # of sensitivity, so far

    def train_base(self, network: nn.Module) -> nn.Module:
        """Train the base network, or take the weights of a run that trained the same one."""
        recipe = Recipe(epochs=self.cfg.trainer.max_epochs, **self.cfg.training)
        teacher = self.teachers["training"]

        def make(folder: Path) -> None:
            self._fit(network, recipe, "base", folder, teacher=teacher)

        with self.record.timed("training"):
            key = {"model": network.spec, "recipe": recipe, "teacher": _taught_by(teacher)}
            entry = self.reuse.shared("base", TRAINED_BY, make, **key)
            return with_kept_weights(network, entry)

    def finetune(self, network: nn.Module, plan: Plan, pruned: nn.Module) -> nn.Module:
        """Prune a copy of ``network`` inside Lightning and train on from ``pruned``'s weights."""
        recipe = Recipe(**self.cfg.finetune)
        teacher = (self.teachers["finetune"] or self.base) if recipe.distills else None

        def make(folder: Path) -> None:
            callback = PruneBeforeFit(plan, pruned.state_dict())
            self._fit(copy.deepcopy(network), recipe, "finetune", folder, [callback], teacher)

        with self.record.timed("fine-tuning"):
            entry = self.reuse.own(
                "finetuned",
                make,
                weights=tensors_fingerprint(pruned.state_dict()),
                model=network.spec,
                recipe=recipe,
                teacher=_taught_by(teacher),
            )
        return with_kept_weights(pruned, entry)

    def rank(self, network: nn.Module) -> Ranking:
        """The channels of each group that may be pruned, in order of their importance."""
        return rank_channels(self.cfg, self.data, network, self.base)

    def validation_top1(self, network: nn.Module, plan: Plan, mended: bool = True) -> float:
        """Top-1 in percent on the validation split, cut by ``plan``; after the recovery, if any."""
        if mended and plan and self.cfg.pruning.recovery != "none":
            cut = self.recovered(prune(network, plan), plan, network)
            return evaluate(cut, self.data.val_dataloader(), self.device).top1
        with masked(network, plan):
            return evaluate(network, self.data.val_dataloader(), self.device).top1

    def divergence(self, network: nn.Module) -> Tally:
        """Loss, and divergence from the base network, on the images of the sensitivity analysis."""
        return evaluate(network, self._sensitivity_batches(), self.device, self.base)

    @property
    def few_images(self) -> Tensor:
        """A batch of training images, for counting operations and taking times."""
        batches = self.data.calibration_dataloader(min(FEW_IMAGES, len(self.data.train)))
        return next(iter(batches))[0].to(self.device)

    def recovered(self, pruned: nn.Module, plan: Plan, network: nn.Module) -> nn.Module:
        """A copy of ``pruned``, mended on calibration images of the training split.

        A policy that tries candidates asks for the one that it chooses, and a run that goes on for
        all of them, a second time: each is mended once.
        """
        pruning = self.cfg.pruning
        if pruning.recovery == "none":
            return pruned

        def make(folder: Path) -> None:
            batches = self.data.calibration_dataloader(pruning.calibration_images)
            mended = recover(
                copy.deepcopy(pruned),
                network,
                plan,
                [images for images, _ in batches],
                pruning.recovery,
                pruning.ridge,
                self.device,
            )
            keep_weights(folder, mended)

        with self.record.timed("recovery"):
            entry = self.reuse.own(
                "recovered",
                make,
                weights=tensors_fingerprint(pruned.state_dict()),
                network=tensors_fingerprint(network.state_dict()),
                plan=plan,
                values=[pruning.recovery, pruning.ridge, pruning.calibration_images],
            )
        return with_kept_weights(pruned, entry)

    def uniform_curve(self, network: nn.Module, ranking: Ranking) -> None:
        """Step 1: the whole network pruned at each ratio of the grid -> ``uniform.csv``."""

        def make(folder: Path) -> None:
            measure_uniform(
                network,
                self.data.val_dataloader(),
                list(self.cfg.pruning.ratios),
                ranking,
                folder / "uniform.csv",
                self.device,
            )

        with self.record.timed("uniform curve"):
            entry = self.reuse.measured("uniform", network, self.base, ranking, make)
            copy_whole(entry / "uniform.csv", self.folder / "uniform.csv")
        base = pd.read_csv(self.folder / "uniform.csv").iloc[0]
        self.record.results["validation"] = {
            "top1": float(base.top1),
            "loss": float(base.loss),
            "images": int(base.images),
        }
        self.record.write()

    def sensitivity(self, network: nn.Module, ranking: Ranking) -> pd.DataFrame:
        """Step 2: each group alone at each ratio, on the validation split -> ``sensitivity.csv``.

        Networks that are already cut have files of their own, numbered from 2 on.
        """
        name = f"sensitivity_{len(self.tables) + 1}.csv" if self.tables else "sensitivity.csv"
        self.tables.append(name)
        mended = mends_candidates(self.cfg.pruning)

        def make(folder: Path) -> None:
            batches = self._sensitivity_batches()
            images = len(batches.dataset) / len(batches)
            options = {**self.cfg.pruning.sensitivity, "mended": mended}
            with progress() as bar:
                task = bar.add_task("sensitivity", total=None, images=images)
                analyse(
                    SensitivityOptions(**options),
                    self.data,
                    self.cfg.pruning.calibration_images,
                    network,
                    list(self.cfg.pruning.ratios),
                    ranking,
                    folder / "sensitivity.csv",
                    self.device,
                    lambda done, total: bar.update(task, completed=done, total=total),
                    self.base,
                    self.cfg.pruning.ridge,
                )

        with self.record.timed("sensitivity"):
            entry = self.reuse.measured("sensitivity", network, self.base, ranking, make, mended)
            copy_whole(entry / "sensitivity.csv", self.folder / name)
        summary = read_json(entry / "sensitivity.json")
        self.record.add_sensitivity(name, summary)
        _log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in summary.items()))
        return pd.read_csv(self.folder / name)

    def _sensitivity_batches(self) -> DataLoader:
        return self.data.val_dataloader(self.cfg.pruning.sensitivity.images)

    def compare_prediction(
        self, decision: Decision, network: nn.Module, pruned: nn.Module, mended: nn.Module
    ) -> None:
        """Note whether cutting ``network`` cost what was predicted, and what recovery leaves."""
        measure = decision.measure
        if measure is None:
            return

        def compare() -> dict[str, float]:
            before = getattr(self.divergence(network), measure)
            return {
                name: getattr(self.divergence(cut), measure) - before
                for name, cut in (("measured", pruned), ("measured_after_recovery", mended))
            }

        networks = self._networks(self.base, network, pruned, mended)
        found = self.reuse.own_value("prediction", compare, **networks, measure=measure)
        self.record.results["prediction"] = {
            "measure": measure,
            "of": "recovered" if mends_candidates(self.cfg.pruning) else "cut",
            "predicted": decision.predicted,
            **found,
        }
        self.record.write()

    def diagnose(self, network: nn.Module) -> None:
        """Which neurons of a cut network fire less, or no more -> ``diagnostics.csv``."""
        images = min(DIAGNOSED_IMAGES, len(self.data.val))

        def make(folder: Path) -> None:
            batches = list(self.data.val_dataloader(images))
            table = diagnose(self.base, network, batches, self.device)
            write_csv(folder / "diagnostics.csv", table)

        with self.record.timed("diagnostics"):
            entry = self.reuse.own(
                "diagnostics", make, **self._networks(self.base, network), images=images
            )
            copy_whole(entry / "diagnostics.csv", self.folder / "diagnostics.csv")

    @staticmethod
    def _networks(*networks: nn.Module) -> dict[str, Any]:
        """A key for what is measured of networks."""
        return {
            "networks": [tensors_fingerprint(network.state_dict()) for network in networks],
            "models": [network.spec for network in networks],
        }

    def _fit(
        self,
        network: nn.Module,
        recipe: Recipe,
        prefix: str,
        folder: Path,
        callbacks: Sequence[Callback] = (),
        teacher: nn.Module | None = None,
    ) -> None:
        """Train ``network`` and write the weights that are kept into ``folder``."""
        if not from_first((folder / WEIGHTS).exists()):
            # what a stage draws by chance does not depend on what was done before; processes draw
            # for images of their own
            seed_everything(self.cfg.seed + rank(), verbose=False)
            module = Classifier(network, recipe, self.data.num_classes, prefix, teacher)
            trained = fit(module, self.data, self.cfg.trainer, folder, self.loggers, callbacks)
            keep_weights(folder, trained)
        # not before the weights are there
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _taught_by(teacher: nn.Module | None) -> dict[str, Any] | None:
    """What a teacher's answers depend on: not on the folder that it lies in."""
    if teacher is None:
        return None
    return {"weights": tensors_fingerprint(teacher.state_dict()), "model": teacher.spec}
