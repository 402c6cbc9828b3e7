"""What is measured of a table's networks: the row, and the files beside it."""

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from psvit.measure.accuracy import evaluate
from psvit.measured import Measured
from psvit.pruning import prune
from psvit.pruning.allocation import uniform
from psvit.pruning.ranking import Ranking

CPU = torch.device("cpu")
OPTIONS = {
    "images": 5,
    "batch_sizes": [2, 1],
    "repeats": 1,
    "warmup": 0,
    "mac_pj": 4.6,
    "ac_pj": 0.9,
}
CONFIG = OmegaConf.create({"test": True, "measure": OPTIONS})
# names that a spreadsheet would change
CLASSES = ["007", "NA", "1e3", "cat, tabby", "5"]
FILES = ("operations", "firing", "firing_channels", "footprint", "classes", "confusion")


class Images:
    """Data whose test split is ``images`` and ``labels``, in batches of four."""

    class_names = CLASSES

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    val_dataloader = None

    def test_dataloader(self, images=None):
        chosen = slice(images)
        return zip(self.images[chosen].split(4), self.labels[chosen].split(4), strict=True)


@pytest.fixture
def measured(images, labels, tmp_path):
    return Measured(CONFIG, Images(images, labels), tmp_path, CPU)


@pytest.fixture
def pruned(network):
    return prune(network, uniform(Ranking(network), 0.5))


def test_rows_and_files_say_the_same(measured, network, pruned, images, labels, tmp_path):
    rows = {"base": measured.add("base", network), "half": measured.add("half", pruned)}
    tables = {name: pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False) for name in FILES}
    tallies = {
        name: evaluate(x, [(images, labels)], CPU)
        for name, x in (("base", network), ("half", pruned))
    }
    for name, row in rows.items():
        part = {kind: table[table["network"] == name] for kind, table in tables.items()}
        assert row["top1"] == tallies[name].top1
        operations = part["operations"]
        for figure in ("macs", "sops", "energy_mj", "energy_integer_macs_mj"):
            assert row[figure] == pytest.approx(operations[figure].sum(), rel=1e-6)
        stored = part["footprint"].iloc[0]
        assert stored["dtype"] == "float32" and stored["batch_size"] == 2
        assert row["checkpoint_bytes"] == stored["checkpoint_bytes"] > row["weight_bytes"]
        assert row["weight_bytes"] == 4 * row["parameters"]
        # a layer's rate is the mean of its channels', the network's that of its neurons
        channels = part["firing_channels"].groupby("layer", sort=False)["rate"].mean()
        assert channels.to_numpy() == pytest.approx(part["firing"]["rate"].astype(float).to_numpy())
        assert 0 < row["firing_rate"] < 1
        classes = part["classes"]
        assert (classes["images"] * classes["top1"]).sum() / 11 == pytest.approx(row["top1"])
        assert part["confusion"]["images"].sum() == 11
    base, half = rows["base"], rows["half"]
    assert base["agreement"] == 100 and base["drop_stderr"] == 0 and base["memory_saving"] == 0
    assert half["memory_saving"] == 1 - half["parameters"] / base["parameters"] > 0.2
    assert half["macs"] < base["macs"] and half["membrane_bytes"] < base["membrane_bytes"]
    names = pd.read_csv(tmp_path / "classes.csv", dtype=str, keep_default_na=False)["class"]
    assert set(names) <= set(CLASSES) and "NA" in set(names) and "007" in set(names)


def test_measuring_again_replaces_and_changes_nothing(measured, network, pruned, tmp_path):
    first = measured.add("base", network), measured.add("half", pruned)
    before = {name: (tmp_path / f"{name}.csv").read_bytes() for name in FILES}
    again = Measured(CONFIG, measured.data, tmp_path, CPU)
    # a run that goes on knows the base network, and need not measure it again
    again.remember("base", network)
    assert again.add("half", pruned) == first[1]
    assert {name: (tmp_path / f"{name}.csv").read_bytes() for name in FILES} == before


def test_all_rows_of_a_file_have_as_many_digits(measured, network, tmp_path):
    for name in ("base", "same"):
        measured.add(name, network)
    for kind in FILES:
        text = pd.read_csv(tmp_path / f"{kind}.csv", dtype=str, keep_default_na=False)
        base, same = (text[text["network"] == name] for name in ("base", "same"))
        assert base.iloc[:, 1:].to_numpy().tolist() == same.iloc[:, 1:].to_numpy().tolist(), kind
    rates = pd.read_csv(tmp_path / "firing_channels.csv", dtype=str)["rate"]
    assert rates.str.len().max() > 9
    # nine digits that count
    digits = rates.str.lower().str.partition("e")[0].str.replace(".", "").str.lstrip("0")
    assert digits.str.len().max() == 9


def test_a_dead_network_saves_no_energy(measured, network, caplog):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.0)
            nn.init.constant_(module.bias, -1.0)
    row = measured.add("dead", network)
    assert row["silent"] and row["sops"] == 0 and row["silent_channels"] == 1
    assert row["energy_mj"] is None and row["energy_integer_macs_mj"] is None
    assert "dead is silent" in caplog.text


def test_times_cover_all_networks(measured, network, pruned, tmp_path):
    measured.remember("base", network)
    measured.remember("half", pruned)
    found = measured.time()
    assert list(found) == ["base", "half"] and found["base"]["speedup"] == 1
    for row in found.values():
        assert (row["latency_batch_size"], row["throughput_batch_size"]) == (1, 2)
        assert row["latency_ms"] > 0 and row["throughput"] > 0
    assert len(pd.read_csv(tmp_path / "latency.csv")) == 4
    off = OmegaConf.merge(CONFIG, {"measure": {"repeats": 0}})
    untimed = Measured(off, measured.data, tmp_path, CPU)
    untimed.remember("base", network)
    assert untimed.time() == {}
