"""How well a network classifies."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.inference import optimize_for_inference


@dataclass
class Tally:
    """Sums over the images seen so far; sums of parts of a dataset add up to the whole's."""

    images: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    kl_sum: float = 0.0

    def add(self, logits: Tensor, labels: Tensor, expected: Tensor | None = None) -> "Tally":
        """Count a batch: logits ``[B, classes]``, labels ``[B]``.

        ``expected``: logits of a reference network, from whose outputs the divergence is taken.
        """
        self.images += len(labels)
        self.correct += int((logits.argmax(1) == labels).sum())
        # summed in float64, so that the batch size changes no digit that is shown
        self.loss_sum += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        if expected is not None:
            ours, theirs = (x.double().log_softmax(1) for x in (logits, expected))
            self.kl_sum += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
        return self

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100.0 * self.correct / self.images

    @property
    def top1_stderr(self) -> float:
        """Standard error of ``top1`` in points (binomial)."""
        share = self.correct / self.images
        return 100.0 * math.sqrt(share * (1.0 - share) / self.images)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.images

    @property
    def kl(self) -> float:
        """Mean Kullback-Leibler divergence from the reference's outputs in nats."""
        return self.kl_sum / self.images

    def as_dict(self) -> dict[str, float]:
        """``top1`` and ``top1_stderr`` in percent, ``loss`` in nats, ``images``."""
        return {
            "top1": self.top1,
            "top1_stderr": self.top1_stderr,
            "loss": self.loss,
            "images": self.images,
        }


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    reference: nn.Module | None = None,
) -> Tally:
    """Accuracy and loss of ``model``, in evaluation mode, over batches of (images, labels).

    With a ``reference`` network also the divergence from its outputs.
    """
    network = optimize_for_inference(model.eval().to(device))
    expecting = None if reference is None else optimize_for_inference(reference.eval().to(device))
    tally = Tally()
    for images, labels in batches:
        images = images.to(device)
        expected = None if expecting is None else expecting(images)
        tally.add(network(images), labels.to(device), expected)
    return tally
