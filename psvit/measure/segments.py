"""Measures of a network that are sums over its segments: operations and time.

Of two networks cut from one base network, the segments that have the same shapes and heads have
the same operations and take the same time. So every different segment is measured once, and a cut
in one block is measured in that block alone: the noise of the others does not enter.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from psvit.measure.latency import seconds_of
from psvit.neurons import reset_state

REPEATS = 7


class SegmentSum:
    """Sums a measure over the segments of a network, remembering each different segment.

    Args:
        measure: a function that runs a segment on what enters it -> a number.
        images: the batch to measure, ``[B, C, H, W]`` or ``[B, T, C, H, W]``. What enters a
            segment behind the first has its shape, and random values.
    """

    def __init__(self, measure: Callable[[Callable[[], Tensor]], float], images: Tensor):
        self.measure, self.images = measure, images
        # path, heads and shapes of a segment -> its measure, the shape of what leaves it
        self._known: dict[tuple, tuple[float, torch.Size]] = {}

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> float:
        """The measure of a forward pass over the batch."""
        network.eval()
        x, total = network.encode(self.images), 0.0
        for path, segment in network.segments().items():
            # of as many channels, in more heads or in fewer, attention is another product
            heads = tuple(getattr(module, "num_heads", 0) for module in segment.modules())
            shapes = (path, heads, *(tuple(tensor.shape) for tensor in segment.parameters()))
            if shapes not in self._known:
                self._known[shapes] = self._measure(network, segment, x)
            value, left = self._known[shapes]
            total += value
            x = torch.randn(left, dtype=x.dtype, device=x.device)
        return total

    def _measure(
        self, network: nn.Module, segment: nn.Module, x: Tensor
    ) -> tuple[float, torch.Size]:
        def run() -> Tensor:
            reset_state(segment)
            return network.step(segment, x)

        # the first call warms up
        left = run().shape
        return self.measure(run), left


def macs(run: Callable[[], object]) -> float:
    """Dense multiply-accumulates of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    # the counter takes a multiply-accumulate for two operations
    return counter.get_total_flops() / 2


def seconds(run: Callable[[], object]) -> float:
    """Median time of a call, of ``REPEATS``."""
    return statistics.median(seconds_of(run) for _ in range(REPEATS))
