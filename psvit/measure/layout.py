"""Which axis of a neuron's tensors has the channels.

Tensors are ``[T, B, C, H, W]`` (T time steps, B batch, C channels, H x W pixels), or, between
``Linear`` layers, ``[T, B, N, C]`` (N tokens).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from psvit.models.attention import SpikingAttention
from psvit.models.qkformer import BatchAsTime

# layers whose channels come last
LAST = (nn.Linear, nn.LayerNorm)

View = Callable[[Tensor], Tensor]


def neurons(network: nn.Module) -> dict[str, BaseNode]:
    """Path -> neuron layer."""
    return {path: m for path, m in network.named_modules() if isinstance(m, BaseNode)}


def views(network: nn.Module, path: str) -> list[View]:
    """What may show the tensors of a neuron as ``[T, B, C, positions]``, the likeliest first.

    Behind a product of heads stands ``[T, B, heads, C / heads, N]``, and a neuron that takes the
    batch for time sees ``[T * B, C, ...]``; anything else has its channels on axis 2, or last.
    """
    parent = network.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, BatchAsTime):
        return [lambda x: x[None].flatten(3)]
    if isinstance(parent, SpikingAttention) and path.endswith(".attention_neuron"):
        return [lambda x: x.flatten(2, 3).flatten(3)]
    return [_second, _last]


def _second(x: Tensor) -> Tensor:
    return x[..., None].flatten(3)


def _last(x: Tensor) -> Tensor:
    return x.flatten(2, -2).transpose(2, 3) if x.dim() > 3 else _second(x)


@contextmanager
def watch_emitted(
    network: nn.Module, emitted: Callable[[str, Tensor, bool], None]
) -> Iterator[None]:
    """Call ``emitted(path, [T, B, C, positions], again)`` for what each neuron emits inside.

    Channels are last where a ``Linear`` or a ``LayerNorm`` made what the neuron reads, or reads
    what it emits. That is found out behind the neuron's first call: it is told ``again`` then, as
    it should have been told.
    """
    # storage -> extent and stride of the channels that a layer wrote there; neuron that did
    written: Any = WeakIdKeyDictionary()
    spikes: Any = WeakIdKeyDictionary()
    last: set[str] = set()

    def write(_layer, _inputs, output: Tensor) -> None:
        written[output.untyped_storage()] = output.shape[-1], output.stride(-1)

    def read(_layer, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        path, shape, strides = spikes.get(x.untyped_storage(), (None, (0,), (0,)))
        if path in last or (shape[-1], strides[-1]) != (x.shape[-1], x.stride(-1)):
            return
        last.add(path)
        # all of it, whatever part the layer reads; a neuron's output begins where its storage does
        emitted(path, _last(x.as_strided(shape, strides, 0)), True)

    def fire(path: str) -> Callable:
        first, *others = views(network, path)

        def hook(_neuron, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if others:
                place = output.shape[-1], output.stride(-1)
                if written.get(inputs[0].untyped_storage()) == place:
                    last.add(path)
                spikes[output.untyped_storage()] = path, output.shape, output.stride()
            emitted(path, (_last if path in last else first)(output), False)

        return hook

    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, LAST):
                hooks.enter_context(layer.register_forward_hook(write))
                hooks.enter_context(layer.register_forward_pre_hook(read))
        for path, neuron in neurons(network).items():
            hooks.enter_context(neuron.register_forward_hook(fire(path)))
        yield
