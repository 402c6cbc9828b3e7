"""All that is measured of one network beside its accuracy, in the form the results have."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from psvit.measure.firing import watch_firing
from psvit.measure.footprint import measure_footprint
from psvit.measure.operations import add_energy, count_operations
from psvit.neurons import reset_state


@dataclass(frozen=True)
class Measures:
    """What was found of a network."""

    # figures of the whole network, by the names they have in results.json
    row: dict[str, Any]
    # name of a table -> its rows
    tables: dict[str, pd.DataFrame]


def measure_network(
    network: nn.Module, images: Tensor, batch_size: int, mac_pj: float, ac_pj: float
) -> Measures:
    """Operations, energy, firing and footprint.

    Args:
        network: on the device of ``images``.
        images: ``[N, C, H, W]`` or ``[N, T, C, H, W]``; firing rates are those on them.
        batch_size: images, at most all, of the batch whose activations are measured.
        mac_pj: picojoules of a multiply-accumulate.
        ac_pj: picojoules of an accumulate.

    Returns:
        ``row``: sums over the layers of ``macs``, ``sops``, ``energy_mj`` and
        ``energy_integer_macs_mj`` (see ``add_energy``), of one image; ``silent``, whether no layer
        that reads spikes got any: then both energies are None, for a dead network saves nothing
        (one without neurons is not dead);
        ``Firing.summary``; and the float32 row of ``measure_footprint``.
        ``tables``: ``operations``, ``firing`` (by layer), ``firing_channels``, ``footprint``.
    """
    with watch_firing(network) as firing:
        operations = add_energy(count_operations(network, images), mac_pj, ac_pj)
    reset_state(network)
    footprint = measure_footprint(network, images[:batch_size])
    sums = operations[["macs", "sops", "energy_mj", "energy_integer_macs_mj"]].sum().to_dict()
    fired = firing.summary()
    silent = sums["sops"] == 0 and fired["firing_rate"] is not None
    if silent:
        sums |= {"energy_mj": None, "energy_integer_macs_mj": None}
    stored = footprint.iloc[0].to_dict()
    row = {**sums, "silent": bool(silent), **fired}
    row |= {name: stored[name] for name in footprint.columns if name.endswith("_bytes")}
    tables = {
        "operations": operations,
        "firing": firing.table(),
        "firing_channels": firing.channels(),
        "footprint": footprint,
    }
    return Measures(row, tables)
