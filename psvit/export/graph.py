"""From a network to an ONNX graph: time unrolled, the batch axis free.

T time steps, B batch, C channels, H x W pixels.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from psvit.errors import UserError
from psvit.neurons import LIF, IntegerLIF

# Export needs packages that psvit runs without, so what comes from them is imported where it is
# used, and typed Any.

# A neuron is one operator while torch traces the network, which is quick whatever T, and then the
# neuron's own arithmetic in the neuron's order.


@torch.library.custom_op("psvit::lif", mutates_args=())
def _lif(x_seq: Tensor, tau: float, v_threshold: float) -> Tensor:
    return LIF(tau, v_threshold)(x_seq)


@torch.library.custom_op("psvit::integer_lif", mutates_args=())
def _integer_lif(x_seq: Tensor, levels: int, leak: float, norm: float) -> Tensor:
    neuron = IntegerLIF(levels, norm)
    neuron.tau = 1.0 / (1.0 - leak)
    return neuron(x_seq)


_lif.register_fake(lambda x_seq, *constants: torch.empty_like(x_seq))
_integer_lif.register_fake(lambda x_seq, *constants: torch.empty_like(x_seq))


def lif_step(x: Tensor, v: Tensor | None, tau: float, v_threshold: float) -> tuple[Tensor, Tensor]:
    """H[t] and the spikes of ``psvit.neurons.LIF``; ``v`` is None at the first step."""
    charge = x / tau if v is None else (x - v) / tau + v
    return charge, (charge >= v_threshold).to(x.dtype)


def integer_step(x: Tensor, v: Tensor | None, levels: int, leak: float) -> tuple[Tensor, Tensor]:
    """U[t] and the counts of ``psvit.neurons.IntegerLIF``; ``v`` is None at the first step."""
    charge = x if v is None else x + v * leak
    return charge, charge.clamp(0, levels).round()


def _lif_onnx(x_seq: Any, tau: float, v_threshold: float) -> Any:
    from onnxscript import opset18 as op

    tau, v_threshold, v, spikes = _scalar(tau), _scalar(v_threshold), None, []
    for x in _steps(x_seq):
        charge = op.Div(x, tau) if v is None else op.Add(op.Div(op.Sub(x, v), tau), v)
        spikes.append(op.Cast(op.GreaterOrEqual(charge, v_threshold), to=1))
        v = op.Sub(charge, op.Mul(charge, spikes[-1]))
    return op.Concat(*spikes, axis=0)


def _integer_lif_onnx(x_seq: Any, levels: int, leak: float, norm: float) -> Any:
    from onnxscript import opset18 as op

    low, high, leak, v, counts = _scalar(0), _scalar(levels), _scalar(leak), None, []
    for x in _steps(x_seq):
        charge = x if v is None else op.Add(x, op.Mul(v, leak))
        counts.append(op.Round(op.Clip(charge, low, high)))
        v = op.Sub(charge, counts[-1])
    return op.Div(op.Concat(*counts, axis=0), _scalar(norm))


def _scalar(value: float) -> Any:
    import onnx_ir
    from onnxscript import opset18 as op

    return op.Constant(value=onnx_ir.tensor(float(value), dtype=onnx_ir.DataType.FLOAT))


def _steps(x_seq: Any) -> Sequence[Any]:
    """``[T, ...]`` -> T times ``[1, ...]``."""
    from onnxscript import opset18 as op

    time_steps = x_seq.shape[0]
    return [x_seq] if time_steps == 1 else op.Split(x_seq, axis=0, num_outputs=time_steps)


def constants(neuron: nn.Module) -> tuple:
    """tau and threshold of a LIF; levels, leak and norm of an IntegerLIF.

    Raises:
        UserError: spikingjelly's settings that psvit's neurons leave alone were changed.
    """
    if isinstance(neuron, LIF):
        known = neuron.decay_input and neuron.v_reset == 0.0
        values: tuple[Any, ...] = (neuron.tau, neuron.v_threshold)
    else:
        known = neuron.v_threshold == 1.0 and not neuron.detach_reset
        values = (neuron.surrogate_function.max_spike_count, 1.0 - 1.0 / neuron.tau, neuron.norm)
    if not known:
        raise UserError("neuron", neuron, "cannot be exported with other settings than psvit's")
    return values


class _Traced(nn.Module):
    """A neuron as its operator."""

    def __init__(self, neuron: nn.Module, emit: Callable[[Tensor], None]):
        super().__init__()
        self.constants, self.is_lif, self.emit = constants(neuron), isinstance(neuron, LIF), emit

    def forward(self, x_seq: Tensor) -> Tensor:
        if not self.is_lif:
            emitted = torch.ops.psvit.integer_lif(x_seq, *self.constants)
        elif isinstance(x_seq.shape[0], int):
            emitted = torch.ops.psvit.lif(x_seq, *self.constants)
        else:
            # QKFormer's batch_as_time: as many steps as the batch makes, so not unrolled
            from torch._higher_order_ops.scan import scan

            emitted = scan(self._step, torch.zeros_like(x_seq[0]), x_seq)[1]
        self.emit(emitted)
        return emitted

    def _step(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        charge, spikes = lif_step(x, v, *self.constants)
        return charge - charge * spikes, spikes


class _Traceable(nn.Module):
    """Gives the logits and, in the order in which the neurons run, what each emitted."""

    def __init__(self, network: nn.Module):
        super().__init__()
        emitted: list[Tensor] = []
        self.network = with_neurons(network, lambda neuron: _Traced(neuron, emitted.append))
        # torch.export refuses tensors in an attribute
        self._emitted = lambda: emitted

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self._emitted().clear()
        return self.network(images), *self._emitted()


def with_neurons(network: nn.Module, replace: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of ``network`` in which ``replace`` chose what stands for each of psvit's neurons."""
    network = copy.deepcopy(network)
    for path, module in list(network.named_modules()):
        if type(module) in (LIF, IntegerLIF):
            network.set_submodule(path, replace(module))
    return network


def to_onnx(network: nn.Module, images: Tensor, opset: int | None = None) -> Any:
    """``network`` as an ``onnx.ModelProto``: takes ``images``; gives ``logits``, then all spikes.

    Neurons of other types than psvit's are traced as they are, and give no spikes.

    Args:
        network: one of ``psvit.models`` or of your own, in float32; it runs in evaluation mode.
        images: ``[B, C, H, W]`` or ``[B, T, C, H, W]`` to trace it with, B at least 2. The graph
            takes any B.
        opset: version of ONNX's operators, from 18; None for the exporter's choice.

    Raises:
        UserError: it cannot be exported.
    """
    table = {
        torch.ops.psvit.lif.default: _lif_onnx,
        torch.ops.psvit.integer_lif.default: _integer_lif_onnx,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Traceable(network).eval(),
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                custom_translation_table=table,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        cause: BaseException = error
        # the exporter's own message says how to report a fault of it
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError("network", type(network).__name__, f"no ONNX of it: {reason}") from error
    if opset is not None and program.model.opset_imports[""] != opset:
        raise UserError("opset", opset, "the exporter has no conversion to it")
    # the exporter notes which line of which source file, by its full path, made each node
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    return program.model_proto


def logits_only(model: Any) -> Any:
    """A copy of what ``to_onnx`` gave, without the spikes among its outputs."""
    model = copy.deepcopy(model)
    del model.graph.output[1:]
    return model
