"""How well a network classifies."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psvit.inference import optimize_for_inference
from psvit.processes import by_shares

# with five classes or fewer, one of the five is always right
TOP = 5


@dataclass
class Tally:
    """Sums over the images seen so far; sums of parts of a dataset add up to the whole's."""

    images: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    kl_sum: float = 0.0
    # images whose class is among the five likeliest; None where there are no more classes
    correct5: int | None = None
    # where answers are kept: of each batch the classes ``[B]`` that were chosen, and the labels
    answers: list[tuple[Tensor, Tensor]] | None = field(default=None, compare=False, repr=False)

    def add(self, logits: Tensor, labels: Tensor, expected: Tensor | None = None) -> "Tally":
        """Count a batch: logits ``[B, classes]``, labels ``[B]``.

        ``expected``: logits of a reference network, from whose outputs the divergence is taken.
        """
        chosen = logits.argmax(1)
        self.images += len(labels)
        self.correct += int((chosen == labels).sum())
        if logits.shape[1] > TOP:
            likeliest = logits.topk(TOP, dim=1).indices
            self.correct5 = (self.correct5 or 0) + int((likeliest == labels[:, None]).sum())
        if self.answers is not None:
            self.answers.append((chosen.cpu(), labels.cpu()))
        self.loss_sum += float(cross_entropy(logits, labels))
        if expected is not None:
            self.kl_sum += float(divergence(logits, log_probabilities(expected)))
        return self

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100.0 * self.correct / self.images

    @property
    def top1_stderr(self) -> float:
        """Standard error of ``top1`` in points (binomial)."""
        return standard_error(self.correct, self.images)

    @property
    def top5(self) -> float | None:
        """Share in percent whose class is among the five likeliest; None for five classes."""
        return None if self.correct5 is None else 100.0 * self.correct5 / self.images

    @property
    def top5_stderr(self) -> float | None:
        """Standard error of ``top5`` in points (binomial)."""
        return None if self.correct5 is None else standard_error(self.correct5, self.images)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.images

    @property
    def kl(self) -> float:
        """Mean Kullback-Leibler divergence from the reference's outputs in nats."""
        return self.kl_sum / self.images

    @property
    def guesses(self) -> bool:
        """Whether ``top1`` is within two standard errors of naming the largest class each time.

        Where ``answers`` are kept.
        """
        largest = int(torch.cat([labels for _, labels in self.answers or ()]).bincount().max())
        return self.top1 - 2 * self.top1_stderr <= 100.0 * largest / self.images

    def as_dict(self) -> dict[str, float | None]:
        """Accuracies and their standard errors in percent, ``loss`` in nats, ``images``."""
        return {
            "top1": self.top1,
            "top1_stderr": self.top1_stderr,
            "top5": self.top5,
            "top5_stderr": self.top5_stderr,
            "loss": self.loss,
            "images": self.images,
        }


# both are summed in float64, so that the batch size changes no digit that is shown
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over a batch, in nats: logits ``[B, classes]``, labels ``[B]``."""
    return F.cross_entropy(logits.double(), labels, reduction="sum")


def divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """Sum over a batch of the Kullback-Leibler divergence from ``expected``, in nats.

    Args:
        logits: ``[B, classes]``.
        expected: a reference network's ``log_probabilities``, ``[B, classes]``.
    """
    return F.kl_div(log_probabilities(logits), expected, reduction="sum", log_target=True)


def log_probabilities(logits: Tensor) -> Tensor:
    """In float64, ``[B, classes]``."""
    return logits.double().log_softmax(1)


def standard_error(hits: int, images: int) -> float:
    """Binomial standard error, in points, of ``hits`` out of ``images``."""
    share = hits / images
    return 100.0 * math.sqrt(share * (1.0 - share) / images)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    reference: nn.Module | None = None,
) -> Tally:
    """Accuracy and loss of ``model``, in evaluation mode, over batches of (images, labels).

    With a ``reference`` network also the divergence from its outputs. The answers are kept.
    Several processes share each batch, and all have the whole tally.
    """
    # before: weights that moved in inference mode could not be trained afterwards
    for each in (model, reference):
        if each is not None:
            each.eval().to(device)
    tally = Tally(answers=[])
    with torch.inference_mode():
        network = optimize_for_inference(model)
        expecting = None if reference is None else optimize_for_inference(reference)
        for images, labels in batches:
            images = images.to(device)
            expected = None if expecting is None else by_shares(expecting, images)
            tally.add(by_shares(network, images), labels.to(device), expected)
    return tally
