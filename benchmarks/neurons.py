"""Neurons alone: torch operations in place against spikingjelly's own."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.timing import Options, Result, compare
from psvit.neurons import LIF, IntegerLIF, _lif_inference, _LIFTraining, reset_state


def neurons(options: Options) -> Iterator[Result]:
    """LIF and integer neurons, forward and in training.

    On CUDA networks take spikingjelly's kernels for LIF: these rows say whether they should.
    """
    lif, integer = LIF(), IntegerLIF()
    kinds: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "LIF": (naive.stock_lif(lif), partial(_in_place, lif)),
        "integer": (naive.StockInteger(integer), integer),
    }
    batch = 512 if options.device.type == "cuda" else 32
    # [T, B, C, H, W]: a first stage of 32 px, a third one of 224 px
    for shape in ((2, batch, 64, 32, 32), (4, 32, 256, 14, 14)):
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
        for name, (theirs, ours) in kinds.items():
            for training in (False, True):
                yield compare(
                    f"neurons, {name}, {list(shape)}, {'training' if training else 'forward'}",
                    _run(theirs, inputs, training),
                    _run(ours, inputs, training),
                    None,
                    options,
                )


def _in_place(lif: LIF, x: Tensor) -> Tensor:
    """What an LIF at rest does on the CPU, on any device."""
    values = 0.0, lif.tau, lif.v_threshold, lif.v_reset
    if torch.is_grad_enabled():
        return _LIFTraining.apply(x, *values, lif.surrogate_function.alpha)[0]
    return _lif_inference(x, *values)[0]


def _run(neuron: Callable[[Tensor], Tensor], inputs: Tensor, training: bool) -> Callable[[], None]:
    x = inputs.clone().requires_grad_(training)

    def run() -> None:
        # a GPU is given several to do, and only then waited for
        for _ in range(10 if x.is_cuda else 1):
            if isinstance(neuron, nn.Module):
                reset_state(neuron)
            with torch.set_grad_enabled(training):
                spikes = neuron(x)
            if training:
                spikes.sum().backward()

    return run
