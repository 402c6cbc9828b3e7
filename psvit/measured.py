"""What is measured of the networks of the table; by layer and by class in files beside it."""

import logging
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from psvit.data import ImageData
from psvit.files import write_csv
from psvit.inference import optimize_for_inference
from psvit.measure.accuracy import Tally, evaluate
from psvit.measure.classes import class_changes, compare, confusion_changes
from psvit.measure.footprint import memory_mb, memory_saving, parameters
from psvit.measure.latency import time_networks
from psvit.measure.network import measure_network

_log = logging.getLogger(__name__)

# of the timings, what the table shows: those of the smallest batch, and the largest's throughput
LATENCY = ("latency_ms", "latency_q1_ms", "latency_q3_ms", "speedup", "speedup_q1", "speedup_q3")


class Measured:
    """Measures networks, each against the first, which is the base network.

    All on the test split, or with ``test=false`` on the validation split.

    Args:
        cfg: the composed config.
        data: the images.
        folder: the run's folder.
        device: where networks are measured.
    """

    def __init__(self, cfg: DictConfig, data: ImageData, folder: Path, device: torch.device):
        self.cfg, self.data, self.folder, self.device = cfg.measure, data, folder, device
        self._batches = data.test_dataloader if cfg.test else data.val_dataloader
        self._networks: dict[str, nn.Module] = {}
        self._base_answers: Tally | None = None

    def remember(self, name: str, network: nn.Module) -> None:
        """Take a network into the timings, and the first one for the base network."""
        self._networks[name] = network

    def add(self, name: str, network: nn.Module) -> dict[str, Any]:
        """Measure a network, and write its part of ``operations.csv``, ``firing.csv``,
        ``firing_channels.csv``, ``footprint.csv``, ``classes.csv`` and ``confusion.csv``.

        Returns:
            What its row of the results holds: see ``Tally.as_dict``, ``compare`` and
            ``measure_network``.
        """
        self.remember(name, network)
        tally = evaluate(network, self._batches(), self.device)
        base = self._base(tally)
        found = measure_network(
            network,
            self._images(self.cfg.images),
            max(self.cfg.batch_sizes),
            self.cfg.mac_pj,
            self.cfg.ac_pj,
        )
        if found.row["silent"]:
            _log.warning(
                "%s is silent: no layer gets a spike, and what it saves in energy means nothing",
                name,
            )
        # of a network that was cut, that is what the table tells
        if base is tally and tally.guesses:
            _log.warning(
                "%s is right no more often than naming the largest class each time: there is no "
                "accuracy to lose; trainer.max_epochs and dataset.batch_size say how many steps a "
                "network is trained",
                name,
            )
        classes = list(self.data.class_names)
        tables = {
            **found.tables,
            "classes": class_changes(base, tally, classes),
            "confusion": confusion_changes(base, tally, classes),
        }
        for kind, table in tables.items():
            self._write(kind, name, table)
        size, whole = parameters(network), parameters(next(iter(self._networks.values())))
        return {
            **tally.as_dict(),
            **compare(base, tally),
            "guesses": tally.guesses,
            "parameters": size,
            "memory_mb": memory_mb(network),
            "memory_saving": memory_saving(size, whole),
            **found.row,
        }

    def time(self) -> dict[str, dict[str, float]]:
        """Time all networks, optimised for inference and in turn -> ``latency.csv``.

        Returns:
            Name -> its figures for the table: ``LATENCY`` of the smallest batch, ``throughput`` of
            the largest, and both sizes. They stand apart from the rows, which the same seed gives
            again.
        """
        if not self.cfg.repeats:
            return {}
        sizes = sorted(set(self.cfg.batch_sizes))
        networks = {
            name: optimize_for_inference(network.to(self.device), packed=True)
            for name, network in self._networks.items()
        }
        images = self._images(sizes[-1])
        table = time_networks(networks, images, sizes, self.cfg.repeats, self.cfg.warmup)
        write_csv(self.folder / "latency.csv", table)
        found: dict[str, dict[str, Any]] = {}
        for name, rows in table.groupby("network", sort=False):
            single, batch = rows.iloc[0], rows.iloc[-1]
            found[name] = {
                **{key: float(single[key]) for key in LATENCY},
                "latency_batch_size": int(single["batch_size"]),
                "throughput": float(batch["throughput"]),
                "throughput_batch_size": int(batch["batch_size"]),
                "threads": int(single["threads"]),
                "device": str(single["device"]),
            }
        return found

    def _base(self, tally: Tally) -> Tally:
        """The base network's answers; ``tally`` are those of the network that came last."""
        if self._base_answers is None:
            base = next(iter(self._networks.values()))
            if len(self._networks) > 1:
                tally = evaluate(base, self._batches(), self.device)
            self._base_answers = tally
        return self._base_answers

    def _images(self, count: int) -> Tensor:
        batches = self._batches(count)
        return torch.cat([images for images, _ in batches]).to(self.device)

    def _write(self, kind: str, name: str, table: pd.DataFrame) -> None:
        """Put ``table`` in place of the network's rows in ``<kind>.csv``."""
        file = self.folder / f"{kind}.csv"
        table = table.copy()
        table.insert(0, "network", name)
        # as text: what was written stays as it is, a class named "007" or "NA" too; and new rows
        # have the digits that they would have alone, which a column of texts and numbers forgets
        table = _as_text(StringIO(table.to_csv(index=False, float_format="%.9g")))
        if file.is_file():
            before = _as_text(file)
            table = pd.concat([before[before["network"] != name], table], ignore_index=True)
        write_csv(file, table)


def _as_text(csv: Path | StringIO) -> pd.DataFrame:
    return pd.read_csv(csv, dtype=str, keep_default_na=False)
