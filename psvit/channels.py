"""The ground floor: what a channel group and a pruning plan are."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from psvit.errors import UserError
from psvit.files import write_text

KINDS = ("hidden", "query_key", "value", "head", "stream")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Modules are named by their path: relative to the block in a block's declaration, from the
    network's root in ``model.channel_groups()``. A group of ``size`` units may cut a module whose
    axis is a multiple of ``size``: unit u then stands for the u-th run of consecutive channels
    (a head and its channels).
    """

    name: str
    # hidden | query_key | value | head | stream
    kind: str
    # units that can be kept or removed
    size: int
    # modules whose output channels (axis 0 of every tensor) are the group: convolutions, batch
    # norms, depthwise convolutions of the group's channels, with one filter or more for each
    producers: tuple[str, ...]
    # modules that read the group along their input axis (axis 1 of the weight)
    consumers: tuple[str, ...] = ()
    # a cut must leave as many units in each of this many equal, consecutive parts
    heads: int = 1
    # batch norms (folded: convolutions) to zero when masking, where zeroing the consumers' input
    # cannot do it: the query, which is read by the attention product and not by a module
    silenced: tuple[str, ...] = ()
    # neurons whose spikes are the group, where a product reads them and no module: one a factor
    neurons: tuple[str, ...] = ()
    # modules whose ``num_heads`` counts the group's units
    counted_by: tuple[str, ...] = ()

    @property
    def masked_modules(self) -> tuple[str, ...]:
        """The modules whose weights masking changes."""
        return self.silenced or self.consumers

    def within(self, path: str) -> "ChannelGroup":
        """The same group, seen from the module that holds ``path``."""

        def absolute(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(f"{path}.{name}" if name else path for name in names)

        return replace(
            self,
            name=f"{path}.{self.name}",
            producers=absolute(self.producers),
            consumers=absolute(self.consumers),
            silenced=absolute(self.silenced),
            neurons=absolute(self.neurons),
            counted_by=absolute(self.counted_by),
        )


# axes of a layer's weight
OUTPUT, INPUT = 0, 1


def axis_length(module: Any, axis: int) -> int:
    """Channels of a layer along one axis of its weight."""
    if module.weight is None:
        # a batch norm that is not affine has statistics alone, a layer norm not even those
        return getattr(module, "num_features", None) or module.normalized_shape[0]
    return module.weight.shape[axis]


def is_depthwise(convolution: Any) -> bool:
    """Whether each filter reads one channel; a channel may have several filters, side by side."""
    return convolution.groups > 1 and convolution.groups == convolution.in_channels


def first_weight(model: Any, paths: Iterable[str]) -> str:
    """The first of ``paths`` in ``model`` that has a weight: a batch norm may have none.

    Raises:
        UserError: no module there has one.
    """
    paths = tuple(paths)
    for path in paths:
        if getattr(model.get_submodule(path), "weight", None) is not None:
            return path
    raise UserError("producers", list(paths), "expected a layer with a weight among them")


class Plan(Mapping[str, tuple[int, ...]]):
    """For each channel group the indices kept, ascending; a group not named is kept whole.

    Args:
        kept: group name -> kept unit indices.

    Raises:
        UserError: a group's indices are empty, repeated or negative.
    """

    def __init__(self, kept: Mapping[str, Iterable[Any]] | None = None):
        self._kept: dict[str, tuple[int, ...]] = {}
        for name, indices in (kept or {}).items():
            ordered = tuple(sorted(operator.index(index) for index in indices))
            if not ordered or ordered[0] < 0 or len(set(ordered)) != len(ordered):
                raise UserError(
                    f"plan.{name}",
                    list(ordered),
                    "expected at least one kept index, none twice, none negative",
                )
            self._kept[name] = ordered

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"Plan({', '.join(f'{name}: {len(kept)}' for name, kept in self.items())})"

    def check(self, groups: Mapping[str, ChannelGroup]) -> "Plan":
        """Return self if it fits ``groups``.

        Raises:
            UserError: a group does not exist, an index lies outside it, or its heads would keep
                different numbers of channels.
        """
        for name, kept in self.items():
            group = groups.get(name)
            if group is None:
                raise UserError(
                    "plan",
                    name,
                    f"no such channel group in this network; it has {', '.join(groups)}",
                )
            if kept[-1] >= group.size:
                raise UserError(
                    f"plan.{name}",
                    kept[-1],
                    f"the group has {group.size} channels (0 to {group.size - 1})",
                )
            counts = [0] * group.heads
            for index in kept:
                counts[index * group.heads // group.size] += 1
            if len(set(counts)) > 1:
                raise UserError(
                    f"plan.{name}", counts, "every head must keep the same number of channels"
                )
        return self

    def save(self, path: Path, groups: Mapping[str, ChannelGroup], policy: str) -> None:
        """Write the plan as YAML: one line of kept indices a group, so that plans can be diffed."""
        lines = [f"policy: {policy}", "groups:" if self._kept else "groups: {}"]
        for name, kept in self.items():
            lines.append(f"  {name}: {{size: {groups[name].size}, kept: {list(kept)}}}")
        write_text(path, "\n".join(lines) + "\n")

    @staticmethod
    def load(path: Path) -> "Plan":
        """Read a plan written by ``save``.

        Raises:
            UserError: the file is missing or is not a plan.
        """
        try:
            groups = yaml.safe_load(Path(path).read_text())["groups"]
            return Plan({name: entry["kept"] for name, entry in groups.items()})
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "plan", path, f"expected a plan.yaml written by this program ({error})"
            ) from error
