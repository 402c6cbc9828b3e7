"""Training as a LightningModule."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from psvit.errors import UserError
from psvit.processes import by_shares, world_size
from psvit.training.distillation import distillation_loss, firing_rates, rates_loss
from psvit.training.graphs import GraphedNetwork
from psvit.training.recipe import Recipe


class Classifier(LightningModule):
    """Trains a spiking transformer on labelled images.

    The network resets its neurons before every batch (``SpikingTransformer.run``). Optimizer,
    schedule and mixing are timm's: AdamW without weight decay on biases and batch norms, linear
    warm-up and cosine decay, step by step.

    Args:
        network: gives logits ``[B, classes]``.
        recipe: the schedule.
        num_classes: outputs of the network.
        prefix: names the stage in the logs: ``base`` or ``finetune``.
        teacher: the network to follow, where the recipe distils.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        num_classes: int,
        prefix: str,
        teacher: nn.Module | None = None,
    ):
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.prefix = prefix
        # in a tuple, so that it is neither optimised nor averaged nor saved with the network
        self._teacher: tuple[nn.Module | GraphedNetwork | None] = (teacher and teacher.eval(),)
        self._compiled: tuple[nn.Module] | None = None
        self._graphed: GraphedNetwork | None = None
        self._to_record: Tensor | None = None
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.mix = None
        if recipe.mixup or recipe.cutmix:
            self.mix = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )
            self.loss = nn.CrossEntropyLoss()
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")

    def compile_network(self) -> None:
        """Let ``torch.compile`` make the training and validation steps faster, after a slow start.

        The network itself stays as it is: it is what is saved, cut and measured.
        """
        self._compiled = (torch.compile(self.network),)

    def graph_network(self, images: Tensor) -> None:
        """Replay the passes of training steps as CUDA graphs, for batches such as ``images``."""
        self._to_record = images

    def on_train_start(self) -> None:
        (teacher,) = self._teacher
        if isinstance(teacher, nn.Module):
            teacher.to(self.device)
            kind = next(self.network.parameters()).dtype
            if next(teacher.parameters()).dtype != kind:
                # a copy, as the base network is measured again behind this
                teacher = copy.deepcopy(teacher).to(kind)
                self._teacher = (teacher,)
        # now, as the threads of a loader may not work on the GPU meanwhile
        if self._to_record is not None:
            precision = self.trainer.precision_plugin
            images = precision.convert_input(self._to_record.to(self.device))
            with precision.forward_context():
                self._graphed = GraphedNetwork(self.network, images)
                if isinstance(teacher, nn.Module):
                    with torch.no_grad():
                        self._teacher = (GraphedNetwork(teacher, images),)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self._graphed is not None:
            return self._graphed(images)
        network = self.network if self._compiled is None else self._compiled[0]
        return network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        images, labels = batch
        targets = labels
        if self.mix is not None:
            images, targets = self._mixed(self.mix, images, labels)
        (teacher,) = self._teacher
        if teacher is not None and self.recipe.distills:
            logits, loss = self._distil(teacher, images, targets)
        else:
            logits = self(images)
            loss = self.loss(logits, targets)
        self._check_finite(loss)
        if self.mix is None:
            self.train_top1(logits.detach(), labels)
            self._log_epoch("top1", self.train_top1, prog_bar=True)
        self._log_epoch("loss", loss, prog_bar=True)
        return loss

    @staticmethod
    def _mixed(mix: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each image mixed with another of the batch, and soft labels ``[B, classes]``."""
        count = len(images)
        # timm takes pairs: the last image of an odd batch meets the first one
        paired = torch.cat([images, images[: count % 2]])
        labels = torch.cat([labels, labels[: count % 2]])
        # ... and [B, C, H, W]: all frames of a recording are cut alike
        mixed, targets = mix(paired.flatten(1, -3), labels)
        return mixed.view_as(paired)[:count], targets[:count]

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            option = "finetune.lr" if self.prefix == "finetune" else "training.lr"
            epoch, step = self.current_epoch + 1, self.global_step + 1
            raise UserError(
                option,
                self.recipe.lr,
                f"{self.prefix}/loss is {loss.item()} at epoch {epoch}, step {step}: expected a "
                "lower one, a longer warm-up, or trainer.gradient_clip_val=1",
            )

    def _distil(
        self, teacher: nn.Module | GraphedNetwork, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits, and the loss against both labels and teacher."""
        recipe = self.recipe
        # the hooks that watch would not run when graphs are replayed
        watched: Callable[[Any], AbstractContextManager[dict[str, Tensor]]]
        watched = firing_rates if recipe.distill_rates else lambda _: nullcontext({})
        with torch.no_grad(), watched(teacher) as teacher_rates:
            taught = teacher(images)
        with watched(self.network) as rates:
            logits = self(images)
        loss = (1.0 - recipe.distill_weight) * self.loss(logits, targets)
        loss = loss + recipe.distill_weight * distillation_loss(
            logits, taught, recipe.distill_temperature
        )
        if recipe.distill_rates:
            loss = loss + recipe.distill_rates * rates_loss(rates, teacher_rates)
        return logits, loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        images, labels = batch
        logits = by_shares(self, images)
        self.val_top1(logits, labels)
        self._log_epoch("val_loss", nn.functional.cross_entropy(logits, labels))
        self._log_epoch("val_top1", self.val_top1, prog_bar=True)

    def _log_epoch(self, name: str, value: Any, **options: bool) -> None:
        # a metric puts its processes' counts together by itself
        sync = world_size() > 1
        self.log(
            f"{self.prefix}/{name}", value, on_step=False, on_epoch=True, sync_dist=sync, **options
        )

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.recipe
        optimizer = create_optimizer_v2(
            self.network,
            "adamw",
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            # an eighth of the time where tensors are many and small; on a GPU torch fuses better,
            # and under autocast Lightning clips no gradient of a fused one
            fused=(self.device.type == "cpu" and "mixed" not in self.trainer.precision) or None,
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            # without the warm-up, which is put before them
            num_epochs=recipe.epochs - recipe.warmup_epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.lr / 100,
            warmup_prefix=True,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=max(1, self.trainer.estimated_stepping_batches // recipe.epochs),
        )
        scheduler.step_update(0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, _metric: Any) -> None:
        scheduler.step_update(self.global_step)

    def on_before_optimizer_step(self, _optimizer: torch.optim.Optimizer) -> None:
        self._log_epoch("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
