"""Does an exported network answer as it does in torch?

Two programs round sums differently. Almost everywhere that moves a logit by a millionth; where a
potential stands within rounding of its threshold, one neuron fires in one program and not in the
other, and what follows differs visibly. So logits alone cannot tell a flipped spike from a fault.

The rule: an image agrees if its logits differ by no more than the tolerance and top-1 is the same.
Where an image does not agree, torch runs its batch again with the *exported* network's spikes in
place of its own, neuron by neuron. The export is right if every neuron, on the same input, differs
only in spikes whose potential stands within ``MARGIN`` of the threshold, and if the logits then
agree. Otherwise it is refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from psvit.errors import UserError
from psvit.export.graph import constants, integer_step, lif_step, logits_only, with_neurons
from psvit.neurons import LIF

# In units of the potential, whose threshold is about 1: far above float32's rounding of a current
# (1e-6), far below what a wrong weight or constant does.
MARGIN = 1e-4


@dataclass
class Agreement:
    """What a check found.

    Attributes:
        images: how many were compared.
        agree: images whose logits lie within the tolerance and whose top-1 is the same.
        same_top1: images whose top-1 is the same.
        difference: largest difference of a logit among the images that agree.
        flipped: spikes that differ, in the batches of images that do not agree.
        distance: largest distance of such a potential from its threshold.
        forced_difference: largest difference of a logit once torch is given these spikes.
    """

    images: int = 0
    agree: int = 0
    same_top1: int = 0
    difference: float = 0.0
    flipped: int = 0
    distance: float = 0.0
    forced_difference: float = 0.0

    def __str__(self) -> str:
        text = (
            f"{self.agree} of {self.images} images agree (largest difference of a logit "
            f"{self.difference:.1g}); same top-1: {self.same_top1}"
        )
        if self.agree < self.images:
            text += (
                f"; the others differ by flipped spikes ({self.flipped} in their batches, at most "
                f"{self.distance:.1g} from the threshold); given these, torch's logits differ by "
                f"{self.forced_difference:.1g}"
            )
        return text


def session(model: Any) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU with as many threads as torch uses.

    Raises:
        UserError: onnxruntime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # errors only: they come as exceptions too
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    # its exceptions have no common ancestor but this
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().splitlines()[0]
        raise UserError("onnxruntime", "CPU", f"does not run the network: {reason}") from error


@torch.inference_mode()
def check(
    network: nn.Module,
    model: Any,
    images: Tensor,
    batch_size: int = 8,
    tolerance: float = 1e-4,
    option: str = "model",
    value: object = "onnx",
) -> Agreement:
    """Compare ``network`` with what ``to_onnx`` made of it, by the rule above.

    Args:
        network: in evaluation mode.
        model: what ``to_onnx`` gave; compared is ``logits_only`` of it.
        images: ``[B, C, H, W]`` or ``[B, T, C, H, W]``, normalised, any B.
        batch_size: how many images go together; another one than that of the tracing shows that
            the graph takes any.
        tolerance: largest difference of a logit.
        option, value: what the error names.

    Raises:
        UserError: they differ, and not by flipped spikes.
    """
    exported, found, probe = session(logits_only(model)), Agreement(), None
    for batch in images.split(batch_size):
        feed = {"images": batch.numpy()}
        expected = network(batch)
        given = torch.from_numpy(exported.run(None, feed)[0])
        difference = (given - expected).abs().amax(1)
        same_top1 = given.argmax(1) == expected.argmax(1)
        agrees = (difference <= tolerance) & same_top1
        found.images += len(batch)
        found.agree += int(agrees.sum())
        found.same_top1 += int(same_top1.sum())
        found.difference = max([found.difference, *difference[agrees].tolist()])
        if agrees.all():
            continue
        probe = probe or session(model)
        again, *emitted = (torch.from_numpy(output) for output in probe.run(None, feed))
        # the spikes explain the exported network only if it is this one that emitted them
        same_run = _largest(again - given) <= tolerance
        explained = _explain(network, batch, given, emitted, found)
        if not (same_run and explained <= tolerance and found.distance <= MARGIN):
            raise UserError(
                option,
                value,
                f"onnxruntime's logits differ from torch's by up to {difference.max().item():.3g} "
                f"(tolerance {tolerance:g}), and not by spikes within {MARGIN:g} of the threshold "
                f"(given the same spikes: {explained:.3g}; farthest spike that differs: "
                f"{found.distance:.3g})",
            )
    return found


def _explain(
    network: nn.Module, batch: Tensor, logits: Tensor, emitted: list[Tensor], found: Agreement
) -> float:
    """Largest difference from ``logits`` of torch's own, had its neurons ``emitted`` this."""
    spikes = iter(emitted)

    def tell(flipped: int, distance: float) -> None:
        found.flipped += flipped
        found.distance = max(found.distance, distance)

    forced = with_neurons(network, lambda neuron: _Forced(neuron, spikes, tell))(batch)
    difference = _largest(forced - logits)
    found.forced_difference = max(found.forced_difference, difference)
    return difference


class _Forced(nn.Module):
    """A neuron that emits what it is given, and tells where it would have done otherwise.

    ``tell`` takes how many of its own spikes differ at a step, and the largest distance of their
    potentials from the threshold. A count that differs by more than one is far from any.
    """

    def __init__(
        self, neuron: nn.Module, given: Iterator[Tensor], tell: Callable[[int, float], None]
    ):
        super().__init__()
        self.constants, self.is_lif = constants(neuron), isinstance(neuron, LIF)
        self.given, self.tell = given, tell

    def forward(self, x_seq: Tensor) -> Tensor:
        emitted, v = next(self.given), None
        for x, given in zip(x_seq, emitted, strict=True):
            if self.is_lif:
                charge, own = lif_step(x, v, *self.constants)
                distance, v = (charge - self.constants[1]).abs(), charge - charge * given
            else:
                levels, leak, norm = self.constants
                given = (given * norm).round()
                charge, own = integer_step(x, v, levels, leak)
                distance, v = (charge.clamp(0, levels) - given).abs() - 0.5, charge - given
            other = own != given
            if other.any():
                self.tell(int(other.sum()), _largest(distance[other]))
        return emitted


def _largest(values: Tensor) -> float:
    """Largest magnitude; infinite if any is no number."""
    return values.abs().nan_to_num(nan=torch.inf).max().item()
