"""Which tensors are made of spikes: followed from the neurons on, operator by operator."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, ops
from torch.utils.weak import WeakIdKeyDictionary

aten = ops.aten
# what gives fractions of spikes, which are no longer spikes
_FRACTIONS = {aten.div, aten.div_, aten.mean, aten.avg_pool2d, aten._adaptive_avg_pool2d}
_PRODUCTS = {aten.mul, aten.mul_}
# whose result counts in the product of the operands' units; elsewhere in the smallest of them
_MULTIPLIES = _PRODUCTS | {aten.mm, aten.bmm}


class SpikeTensors:
    """What a spike is worth in every tensor that is made of spikes.

    A tensor is, if it comes from a neuron, or if every tensor that it was computed from is:
    reshaped, pooled, added or multiplied spikes. The output of a convolution or of a batch norm is
    not, whatever its values, as their parameters are not. So a tensor stays what it is where the
    neurons before it fall silent.
    """

    def __init__(self) -> None:
        # storage -> norm; a view has its tensor's, and a freed one no entry
        self._norms: Any = WeakIdKeyDictionary()

    def add(self, x: Tensor, norm: float = 1.0) -> None:
        """Take ``x`` for spikes, each of them worth 1 / ``norm``."""
        self._norms[x.untyped_storage()] = norm

    def norm(self, x: Tensor) -> float | None:
        """What turns ``x`` into numbers of spikes; None where it is not made of spikes."""
        return self._norms.get(x.untyped_storage())

    def follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """See what an operator made ``out`` of."""
        operator = func._overloadpacket
        # what stood in the place of a copy does not matter, nor do the shapes that kwargs hold
        operands = args[1:2] if operator is aten.copy_ else args
        norms = [self.norm(x) for x in _floats(operands)]
        known = [norm for norm in norms if norm is not None]
        spikes = len(known) == len(norms) and operator not in _FRACTIONS
        if operator in _PRODUCTS:
            factors = [x for x in args if isinstance(x, int | float)]
            spikes &= all(float(x).is_integer() for x in factors)
        norm = math.prod(known) if operator in _MULTIPLIES else max(known, default=1.0)
        for x in _floats((out, kwargs.get("out"))):
            if spikes:
                self.add(x, norm)
            else:
                self._norms.pop(x.untyped_storage(), None)


def _floats(values: Sequence[Any]) -> list[Tensor]:
    """Floating-point tensors, in lists too; masks and indices are no operands."""
    found: list[Tensor] = []
    for x in values:
        if isinstance(x, Tensor):
            found += [x] if x.is_floating_point() else []
        elif isinstance(x, list | tuple):
            found += _floats(x)
    return found
