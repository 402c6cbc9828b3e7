"""Where segments meet the residual stream, and the channel groups that follow from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from psvit.channels import ChannelGroup, first_weight


@dataclass(frozen=True)
class Ports:
    """The modules through which a block reads and writes the residual stream.

    Modules are named by their path from the block that declares them.
    """

    # modules that read the stream along their input axis
    reads: tuple[str, ...] = ()
    # modules whose output channels are the stream's: convolutions and their batch norms
    writes: tuple[str, ...] = ()
    # True: adds to the stream that it reads; False: what it writes is a new stream
    residual: bool = True

    def within(self, path: str) -> "Ports":
        """The same ports, seen from the module that holds ``path``."""
        reads = tuple(f"{path}.{name}" for name in self.reads)
        writes = tuple(f"{path}.{name}" for name in self.writes)
        return Ports(reads, writes, self.residual)

    @staticmethod
    def joined(parts: Iterable["Ports"]) -> "Ports":
        """The ports of blocks that share a stream."""
        reads: list[str] = []
        writes: list[str] = []
        for part in parts:
            reads += part.reads
            writes += part.writes
        return Ports(tuple(reads), tuple(writes))


def stream_groups(model: nn.Module, segments: Mapping[str, nn.Module]) -> list[ChannelGroup]:
    """Channel groups of the tensors between segments, named from the root of ``model``.

    A tensor to which blocks add is a residual stream: one group ``stage3.stream`` of all its
    writers and readers, named after the stage that its last block stands in (where a stage has
    several, those behind the first after the segment that opens them). One that only passes
    from one segment to the next is ``hidden``. A segment without ``residual_ports()`` may do
    anything to its tensors, so those that it touches are left out.
    """
    groups: list[ChannelGroup] = []
    opener: str | None = None
    blocks: list[str] = []
    parts: list[Ports] = []
    for path, segment in segments.items():
        if not hasattr(segment, "residual_ports"):
            opener = None
            continue
        ports = segment.residual_ports().within(path)
        if ports.residual:
            blocks.append(path)
            parts.append(ports)
            continue
        if opener is not None:
            taken = {group.name for group in groups}
            parts.append(Ports(reads=ports.reads))
            groups.append(_between(model, opener, blocks, parts, taken))
        opener, blocks, parts = path, [], [Ports(writes=ports.writes)]
    return groups


def _between(
    model: nn.Module, opener: str, blocks: list[str], parts: list[Ports], taken: set[str]
) -> ChannelGroup:
    ports = Ports.joined(parts)
    size = model.get_submodule(first_weight(model, ports.writes)).weight.shape[0]
    if not blocks:
        return ChannelGroup(f"{opener}.hidden", "hidden", size, ports.writes, ports.reads)
    stage = blocks[-1].rpartition(".")[0] or opener
    name = f"{stage}.stream"
    if name in taken:
        name = f"{opener}.stream"
    return ChannelGroup(name, "stream", size, ports.writes, ports.reads)
