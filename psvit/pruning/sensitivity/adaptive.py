"""When a row of the table is sure enough, so that it needs no further images."""

import math
from dataclasses import dataclass

from scipy.stats import beta

from psvit.pruning.sensitivity.tallies import Paired


@dataclass(frozen=True)
class Stopping:
    """Stops a row once its drop in top-1 is surely above, or surely below, a tolerance.

    The drop is that against the base network on the same images: (lost - gained) / images, where
    the images on which both are right or both wrong cancel. Each of the two shares gets its exact
    binomial (Clopper-Pearson) interval, which also holds where nothing was lost yet.

    A row is looked at behind batch 1, 2, 4, 8, …, and every look may err: look k may with the
    share (1 - confidence) / (k (k + 1)), which add up to 1 - confidence over all looks.

    Attributes:
        tolerance: drop in points of top-1.
        confidence: the least probability, of one row, that it is on the side that it was put on.
    """

    tolerance: float
    confidence: float

    def interval(self, tally: Paired, look: int) -> tuple[float, float]:
        """The least and the greatest drop in points at look ``look``, from 1 on."""
        # four tails: below and above of two shares
        tail = (1.0 - self.confidence) / (look * (look + 1)) / 4.0
        lost, gained = (_bounds(count, tally.images, tail) for count in (tally.lost, tally.gained))
        return 100.0 * (lost[0] - gained[1]), 100.0 * (lost[1] - gained[0])

    def decided(self, tally: Paired, batches: int) -> bool:
        """Whether a row that was shown so many batches may stop behind the last of them."""
        if batches < 1 or batches & (batches - 1):
            return False
        low, high = self.interval(tally, int(math.log2(batches)) + 1)
        return low > self.tolerance or high < self.tolerance


def _bounds(count: int, images: int, tail: float) -> tuple[float, float]:
    low = float(beta.ppf(tail, count, images - count + 1)) if count else 0.0
    high = float(beta.ppf(1.0 - tail, count + 1, images - count)) if count < images else 1.0
    return low, high
