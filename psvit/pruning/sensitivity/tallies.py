"""Sums over images of a candidate beside the base network's on the same images."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from psvit.files import read_json, write_json
from psvit.measure.accuracy import cross_entropy, divergence, log_probabilities

_log = logging.getLogger(__name__)

# channel group, units removed
Candidate = tuple[str, int]


class Values(NamedTuple):
    """What a row of the table says of a candidate: percent, points, nats."""

    images: int
    top1: float
    top1_stderr: float
    drop: float
    drop_stderr: float
    loss: float
    kl: float
    # measured | estimated
    method: str = "measured"


@dataclass
class Paired:
    """What a candidate did on the images seen so far; sums of parts add up to the whole's.

    A candidate that was shown a part of the images is compared with the base network on the same
    ones: what makes those images easy or hard falls out of the difference.
    """

    images: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    kl_sum: float = 0.0
    # of the base network, on the same images
    base_correct: int = 0
    base_loss_sum: float = 0.0
    # images that the base network has right and the candidate wrong
    lost: int = 0
    # of the base network, where another one is the reference
    base_kl_sum: float = 0.0

    def __add__(self, other: "Paired") -> "Paired":
        return Paired(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def gained(self) -> int:
        """Images that the candidate has right and the base network wrong."""
        return self.lost + self.correct - self.base_correct

    @property
    def drop(self) -> float:
        """Points of top-1 below the base network on the same images."""
        return 100.0 * (self.lost - self.gained) / self.images

    @property
    def drop_stderr(self) -> float:
        """Standard error of ``drop`` in points: images that both have right, or wrong, cancel."""
        spread = (self.lost + self.gained) / self.images - (self.drop / 100.0) ** 2
        return 100.0 * math.sqrt(max(spread, 0.0) / self.images)

    def top1(self, base: "Paired") -> float:
        """Top-1 in percent on all images of ``base``: its top-1 less the drop on those seen."""
        found = 100.0 * base.correct / base.images - self.drop
        # of few images that are easier than the rest, or harder
        return min(max(found, 0.0), 100.0)

    def top1_stderr(self, base: "Paired") -> float:
        """Standard error of ``top1`` in points; of all images the binomial one.

        With b (base network right) and d (lost less gained) of an image, seen n of N times, the
        variance of mean(b) - mean(d) is var(b) / N + var(d) / n - 2 cov(b, d) / N.
        """
        right, drop = base.correct / base.images, self.drop / 100.0
        together = self.lost / self.images - self.base_correct / self.images * drop
        both = (right * (1.0 - right) - 2.0 * together) / base.images
        return 100.0 * math.sqrt(max(both + (self.drop_stderr / 100.0) ** 2, 0.0))

    def loss(self, base: "Paired") -> float:
        """Mean cross-entropy in nats, likewise."""
        return base.loss_sum / base.images + (self.loss_sum - self.base_loss_sum) / self.images

    def kl(self, base: "Paired") -> float:
        """Mean divergence from the reference's outputs in nats, likewise."""
        return base.kl_sum / base.images + (self.kl_sum - self.base_kl_sum) / self.images


class BatchTally:
    """Compares candidates with the base network on one batch.

    Args:
        base: logits ``[B, classes]`` of the network that candidates are cut from.
        labels: ``[B]``.
        expected: logits of the network from whose outputs the divergence is taken.
    """

    def __init__(self, base: Tensor, labels: Tensor, expected: Tensor):
        self.labels = labels
        self._expected = log_probabilities(expected)
        self._right = base.argmax(1) == labels
        self._loss = cross_entropy(base, labels)
        self._kl = divergence(base, self._expected)

    def of(self, logits: Tensor) -> Paired:
        """The sums of a candidate's logits ``[B, classes]``."""
        right = logits.argmax(1) == self.labels
        return Paired(
            len(self.labels),
            int(right.sum()),
            float(cross_entropy(logits, self.labels)),
            float(divergence(logits, self._expected)),
            int(self._right.sum()),
            float(self._loss),
            int((self._right & ~right).sum()),
            float(self._kl),
        )


@dataclass
class Sums:
    """All that an analysis has counted: each candidate's sums, and the base network's own.

    Attributes:
        candidates: candidate -> its sums; fewer images than ``base`` has where it was stopped.
        base: the base network's.
    """

    candidates: dict[Candidate, Paired]
    base: Paired

    @staticmethod
    def empty(candidates: Iterable[Candidate]) -> "Sums":
        """Sums over no image."""
        return Sums({candidate: Paired() for candidate in candidates}, Paired())

    def add(self, batch: "Sums", candidates: Iterable[Candidate]) -> None:
        """Add the base network's sums on a batch, and those of ``candidates``."""
        self.base = self.base + batch.base
        for candidate in candidates:
            self.candidates[candidate] = self.candidates[candidate] + batch.candidates[candidate]

    @property
    def going_on(self) -> list[Candidate]:
        """The candidates that were shown every image so far."""
        seen = self.base.images
        return [name for name, tally in self.candidates.items() if tally.images == seen]

    def values(self) -> dict[Candidate, Values]:
        """What the table says of each candidate that was shown images."""
        return {
            candidate: Values(
                tally.images,
                tally.top1(self.base),
                tally.top1_stderr(self.base),
                tally.drop,
                tally.drop_stderr,
                tally.loss(self.base),
                tally.kl(self.base),
            )
            for candidate, tally in self.candidates.items()
            if tally.images
        }

    def save(self, path: Path, key: str) -> None:
        """Write the sums, whole or not at all, and what they are of."""
        rows = [[*candidate, *astuple(tally)] for candidate, tally in self.candidates.items()]
        write_json(path, {"key": key, "base": astuple(self.base), "sums": rows})

    @staticmethod
    def load(path: Path, candidates: Sequence[Candidate], key: str) -> "Sums":
        """The sums saved for the same candidates and key; else empty ones."""
        if not path.is_file():
            return Sums.empty(candidates)
        try:
            saved = read_json(path)
            found = {(name, removed): Paired(*rest) for name, removed, *rest in saved["sums"]}
            base, theirs = Paired(*saved["base"]), saved["key"]
        except (ValueError, LookupError, TypeError) as error:
            _log.warning("%s is damaged (%s): its rows are measured again", path, error)
            return Sums.empty(candidates)
        if found.keys() != set(candidates) or theirs != key:
            return Sums.empty(candidates)
        return Sums({name: found[name] for name in candidates}, base)
