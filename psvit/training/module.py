"""Training as a LightningModule."""

from typing import Any

import torch
from lightning import LightningModule
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class Classifier(LightningModule):
    """Trains a spiking transformer on labelled images.

    The network resets its neurons before every batch (``SpikingTransformer.run``). Optimizer and
    schedule are timm's: AdamW without weight decay on biases and batch norms, linear warm-up and
    cosine decay, step by step.

    Args:
        network: gives logits ``[B, classes]``.
        recipe: ``epochs``, ``lr``, ``weight_decay``, ``warmup_epochs``, ``min_lr``,
            ``label_smoothing``.
        num_classes: outputs of the network.
        prefix: names the stage in the logs: ``base`` or ``finetune``.
    """

    def __init__(self, network: nn.Module, recipe: dict[str, Any], num_classes: int, prefix: str):
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.prefix = prefix
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe["label_smoothing"])
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = self.loss(logits, labels)
        self.train_top1(logits.detach(), labels)
        self.log(f"{self.prefix}/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log(
            f"{self.prefix}/top1", self.train_top1, on_step=False, on_epoch=True, prog_bar=True
        )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_top1(logits, labels)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log(f"{self.prefix}/val_loss", loss, on_step=False, on_epoch=True)
        self.log(
            f"{self.prefix}/val_top1", self.val_top1, on_step=False, on_epoch=True, prog_bar=True
        )

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.recipe
        optimizer = create_optimizer_v2(
            self.network, "adamw", lr=recipe["lr"], weight_decay=recipe["weight_decay"]
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            # without the warm-up, which is put before them
            num_epochs=max(1, recipe["epochs"] - recipe["warmup_epochs"]),
            warmup_epochs=recipe["warmup_epochs"],
            warmup_lr=recipe["lr"] / 100,
            warmup_prefix=True,
            min_lr=recipe["min_lr"],
            step_on_epochs=False,
            updates_per_epoch=max(1, self.trainer.estimated_stepping_batches // recipe["epochs"]),
        )
        scheduler.step_update(0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, _metric: Any) -> None:
        scheduler.step_update(self.global_step)

    def on_before_optimizer_step(self, _optimizer: torch.optim.Optimizer) -> None:
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log(f"{self.prefix}/lr", lr, on_step=False, on_epoch=True)
