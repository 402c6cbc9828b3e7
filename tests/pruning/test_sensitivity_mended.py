"""Mended rows against a pruned copy that ``recover`` mended; and when a run asks for them."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from plans import same_bits

from psvit.measure.accuracy import evaluate
from psvit.pruning import prune
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import recover
from psvit.pruning.sensitivity import Mending, measure_sensitivity
from psvit.setup import mends_candidates

CPU = torch.device("cpu")
RATIOS = [0.7]
RIDGE = 0.05


@pytest.fixture
def calibration():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=generator)
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(5)]


def test_every_row_is_what_recovery_leaves_of_a_pruned_copy(
    network, images, labels, calibration, tmp_path
):
    # a stream's writers read it too: its rows are an approximation, and not compared
    kinds = ["hidden", "query_key", "value", "head"]
    # stage 3 has such an attention too
    ranking = Ranking(network, kinds=kinds, protect=["stage4.block1.attn.*"])
    batches = list(zip(images[:5].split(3), labels[:5].split(3), strict=True))
    before = copy.deepcopy(network.state_dict())
    mending = Mending(network, ranking, calibration, RIDGE, CPU)
    table = measure_sensitivity(
        network, batches, RATIOS, ranking, tmp_path / "sensitivity.csv", CPU, mending=mending
    )
    assert same_bits(network.state_dict(), before)
    changed = 0
    for row in table.itertuples():
        plan = ranking.plan({row.group: row.removed})
        cut = prune(network, plan)
        as_cut = evaluate(cut, batches, CPU, network).kl
        recover(cut, network, plan, [part for part, _ in calibration], "least_squares", RIDGE)
        found = evaluate(cut, batches, CPU, network)
        assert row.kl == pytest.approx(found.kl, abs=1e-6)
        assert row.loss == pytest.approx(found.loss, abs=1e-6)
        assert row.top1 == pytest.approx(found.top1, abs=1e-4)
        changed += abs(found.kl - as_cut) > 1e-5
    assert changed > len(table) // 2


@pytest.mark.parametrize(
    "name, recovery, method, mended, expected",
    [
        ("budgeted", "both", "measured", None, True),
        ("budgeted", "least_squares", "measured", None, True),
        ("budgeted", "bn", "measured", None, False),
        ("budgeted", "both", "estimated", None, False),
        ("budgeted", "both", "measured", False, False),
        ("fine_grained", "both", "measured", None, False),
        ("fine_grained", "both", "measured", True, True),
    ],
)
def test_the_policy_that_counts_on_recovery_measures_what_it_leaves(
    name, recovery, method, mended, expected
):
    pruning = {
        "name": name,
        "recovery": recovery,
        "sensitivity": {"method": method, "mended": mended},
    }
    assert mends_candidates(OmegaConf.create(pruning)) is expected
