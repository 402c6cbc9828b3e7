"""Lightning callbacks."""

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from psvit.channels import Plan
from psvit.processes import from_all, rank, world_size
from psvit.pruning.surgery import prune_

_log = logging.getLogger(__name__)


class PruneBeforeFit(Callback):
    """Cuts a plan out of the module's network before Lightning asks for its optimizer.

    The optimizer therefore holds the smaller network's parameters and no dead ones.

    Args:
        plan: what to cut.
        weights: state dict of the smaller network to begin from, where recovery has changed it.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, Tensor] | None = None):
        self.plan = plan
        self.weights = weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            prune_(pl_module.network, self.plan)
            if self.weights is not None:
                pl_module.network.load_state_dict(self.weights)


class EpochLines(Callback):
    """A line in the log for every epoch, for whoever has no progress bar."""

    def __init__(self) -> None:
        self._validated = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        # Lightning keeps what an earlier epoch's gave
        metrics = trainer.callback_metrics if self._validated else {}
        top1 = metrics.get(f"{pl_module.prefix}/val_top1")
        said = "" if top1 is None else f", validation top-1 {100 * float(top1):.2f} %"
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
        _log.info("%s: epoch %d of %d%s", pl_module.prefix, epoch, epochs, said)


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights and of the batch norms' running statistics.

    It begins with the weights after the first step. The decay after n steps is
    ``min(decay, (1 + n) / (10 + n))``, as TensorFlow's ``ExponentialMovingAverage`` has it: a
    training shorter than 1 / (1 - decay) steps would otherwise end close to where it began.

    Args:
        decay: what the decay rises to.
    """

    def __init__(self, decay: float):
        def average(averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
            if averages[0].is_floating_point():
                n = int(steps)
                get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, steps)
            else:
                # batches that a batch norm has seen: a count is not averaged
                for counted, count in zip(averages, weights, strict=True):
                    counted.copy_(count)

        super().__init__(multi_avg_fn=average)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # made before Lightning moved the network to its device
        self._average_model.to(pl_module.device)


class StartCounts(Callback):
    """Validates the network before its first step and saves it, so that epochs have to beat it.

    A network whose weights were solved again may stand closer to the base network than anything
    that a short fine-tuning finds.

    Args:
        path: gets ``state_dict`` and ``top1``, its share of correct answers on the validation
            split. A training that goes on from a later checkpoint finds it there, and one that
            validates nothing beforehand (Lightning's ``fast_dev_run``) writes none.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning comes here too when it goes on from a later epoch
        if trainer.is_global_zero and trainer.global_step == 0:
            top1 = float(trainer.callback_metrics[f"{pl_module.prefix}/val_top1"])
            saved = {"state_dict": pl_module.state_dict(), "top1": top1}
            trainer.strategy.checkpoint_io.save_checkpoint(saved, self.path)


class KeepRandomState(Callback):
    """Saves each process's global random states with a checkpoint, and goes on from them.

    Augmentation, mixing and stochastic depth draw from them.
    """

    def __init__(self):
        self._loaded: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        # Lightning asks all processes, and the first one writes
        return {"processes": from_all(self._own())}

    def _own(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            # plain values: a checkpoint is read without unpickling objects
            "numpy": (name, list(map(int, keys)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["processes"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # with another number of processes, each goes on from its seed
        if len(self._loaded) != world_size():
            return
        own = self._loaded[rank()]
        random.setstate(own["python"])
        np.random.set_state(own["numpy"])
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
