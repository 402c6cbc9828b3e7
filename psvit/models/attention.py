"""Spiking attentions: no softmax, products of spikes; each declares its channel groups.

Legend: T time steps, B batch, C channels, H x W pixels, N = H·W tokens.
"""

from collections.abc import Callable

from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.models.blocks import MakeNeuron
from psvit.models.layers import ConvBN, per_step
from psvit.models.ports import Ports
from psvit.neurons import LIF

# (input channels, output channels) -> a layer with ``residual_ports``: ConvBN or RepConv
MakeProjection = Callable[[int, int], nn.Module]


class SpikingAttention(nn.Module):
    """What spiking attentions share: spikes in, spikes of each projection, a product, a projection.

    A kind of attention says which projections it has (``inputs``), how their spikes meet
    (``attend``), and which channels that couples (``channel_groups``).

    Args:
        channels: width of the residual stream.
        num_heads: heads, each a run of consecutive channels.
        make_input: makes query, key and value.
        make_projection: makes the projection back to the stream.
        neuron: of the input, of query, key and value.
        attention_neuron: of the product.
        adds_spikes: the neuron stands behind the projection, not before the input.
        value_ratio: width of the value over that of query and key.
    """

    inputs: tuple[str, ...] = ("query", "key", "value")

    def __init__(
        self,
        channels: int,
        num_heads: int,
        make_input: MakeProjection = ConvBN,
        make_projection: MakeProjection = ConvBN,
        neuron: MakeNeuron = LIF,
        attention_neuron: MakeNeuron = lambda: LIF(v_threshold=0.5),
        adds_spikes: bool = False,
        value_ratio: int = 1,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.neuron = nn.Identity() if adds_spikes else neuron()
        for name in self.inputs:
            width = channels * value_ratio if name == "value" else channels
            self.add_module(name, make_input(channels, width))
            self.add_module(f"{name}_neuron", neuron())
        self.attention_neuron = attention_neuron()
        self.projection = make_projection(channels * value_ratio, channels)
        self.output_neuron = neuron() if adds_spikes else nn.Identity()

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        x = self.neuron(x_TBCHW)
        spikes = [
            self._heads(getattr(self, f"{name}_neuron")(per_step(x, getattr(self, name))))
            for name in self.inputs
        ]
        attention = self.attend(*spikes).flatten(2, 3).unflatten(-1, x.shape[-2:])
        return self.output_neuron(per_step(attention, self.projection))

    def _heads(self, x_TBCHW: Tensor) -> Tensor:
        """``[T, B, C, H, W]`` -> ``[T, B, heads, C / heads, N]``."""
        return x_TBCHW.flatten(3).unflatten(2, (self.num_heads, -1))

    def attend(self, *spikes: Tensor) -> Tensor:
        """Spikes ``[T, B, heads, C / heads, N]`` of each input -> the same, for the projection."""
        raise NotImplementedError

    def residual_ports(self) -> Ports:
        reads = [getattr(self, name).residual_ports().within(name).reads for name in self.inputs]
        return Ports(sum(reads, ()), self._outputs("projection"))

    def _outputs(self, *names: str) -> tuple[str, ...]:
        """The modules that make the output channels of these projections."""
        ports = (getattr(self, name).residual_ports().within(name) for name in names)
        return sum((port.writes for port in ports), ())

    def _width(self, name: str) -> int:
        return self.get_submodule(self._outputs(name)[0]).out_channels

    @property
    def _projection_reads(self) -> tuple[str, ...]:
        return self.projection.residual_ports().within("projection").reads

    def _head_group(self) -> ChannelGroup:
        return ChannelGroup(
            "head",
            "head",
            self.num_heads,
            producers=self._outputs(*self.inputs),
            consumers=self._projection_reads,
            counted_by=("",),
        )


class SpikingSelfAttention(SpikingAttention):
    """Q (KᵀV) · scale in every head, then a neuron.

    SSA of Spikformer (arXiv 2209.15425), SDSA-3 of Spike-driven Transformer V2 (arXiv 2404.03663,
    eq. 11) and of its successor. ``scale`` is a constant of the trained network: pruning channels
    of a head must not change it.
    """

    def __init__(self, channels: int, num_heads: int, scale: float = 0.125, **options):
        super().__init__(channels, num_heads, **options)
        self.scale = scale

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # (V Kᵀ) Q with channels before tokens: the order that is linear in N
        return self.attention_neuron((v @ k.transpose(-1, -2)) @ q * self.scale)

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "query_key",
                "query_key",
                self._width("query"),
                heads=self.num_heads,
                producers=self._outputs("query", "key"),
                silenced=self._outputs("query")[-1:],
                neurons=("query_neuron", "key_neuron"),
            ),
            ChannelGroup(
                "value",
                "value",
                self._width("value"),
                heads=self.num_heads,
                producers=self._outputs("value"),
                consumers=self._projection_reads,
            ),
            self._head_group(),
        ]


class SpikeDrivenSelfAttention(SpikingAttention):
    """Q ⊗ spike(Σ_tokens K ⊗ V): a mask over channels, without a matrix product (SDSA-1).

    Spike-driven Transformer V1 (arXiv 2307.01694). Query, key and value meet
    channel by channel, so they lose the same channels: ``value`` cuts all three.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q * self.attention_neuron((k * v).sum(-1, keepdim=True))

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "value",
                "value",
                self._width("value"),
                heads=self.num_heads,
                producers=self._outputs(*self.inputs),
                consumers=self._projection_reads,
            ),
            self._head_group(),
        ]


class TokenAttention(SpikingAttention):
    """K ⊗ spike(Σ_channels Q): in every head a mask over tokens, in place of a value.

    Q-K token attention of QKFormer (arXiv 2403.16552). A head's queries are only
    summed, so query and key lose channels independently; the key stands where others have a value.
    """

    inputs = ("query", "key")

    def attend(self, q: Tensor, k: Tensor) -> Tensor:
        return k * self.attention_neuron(q.sum(3, keepdim=True))

    def channel_groups(self) -> list[ChannelGroup]:
        return [
            ChannelGroup(
                "query",
                "query_key",
                self._width("query"),
                heads=self.num_heads,
                producers=self._outputs("query"),
                silenced=self._outputs("query")[-1:],
                neurons=("query_neuron",),
            ),
            ChannelGroup(
                "key",
                "value",
                self._width("key"),
                heads=self.num_heads,
                producers=self._outputs("key"),
                consumers=self._projection_reads,
            ),
            self._head_group(),
        ]
