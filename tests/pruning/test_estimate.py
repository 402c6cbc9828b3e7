"""Estimated rows: effects against differences, the fit by hand, the table as a measured one."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from own import QueryBlock, alive
from plans import same_bits
from tiny import Smooth
from torch import nn

from psvit.errors import UserError
from psvit.pruning import masked
from psvit.pruning.allocation.decision import cost_curves
from psvit.pruning.estimate import (
    calibrate,
    estimate_sensitivity,
    log_odds_effects,
    rank_correlation,
)
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity import COLUMNS, measure_sensitivity
from psvit.pruning.sensitivity.tallies import Paired, Sums

CPU = torch.device("cpu")


def test_effects_are_what_a_factor_on_the_unit_changes(smooth, smooth_batches):
    images, labels = smooth_batches[0]
    effects = log_odds_effects(smooth, [Smooth.group], images, labels)["g"]
    assert effects.shape == (3, 4)

    def log_odds():
        with torch.no_grad():
            chances = smooth(images).softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return chances.log() - (1 - chances).log()

    step = 1e-5
    for unit in range(4):
        found = []
        for factor in (1 + step, 1 - step):
            with torch.no_grad():
                smooth.conv2.weight[:, unit] *= factor
                found.append(log_odds())
                smooth.conv2.weight[:, unit] /= factor
        slope = (found[0] - found[1]) / (2 * step)
        assert torch.allclose(effects[:, unit], slope, rtol=1e-5, atol=1e-8)
    assert effects.abs().max() > 1e-3


# a network that was cut before has itself a divergence from the reference
@pytest.mark.parametrize("own", [0.0, 0.25])
def test_the_fit_by_hand(own):
    # kl = own + 3 x², and 20 points of top-1 and 2 nats of loss a nat that a cut adds
    base = Paired(1000, 900, 500.0, 1000 * own, 900, 500.0, 0, 1000 * own)
    found = {("a", 1): 0.01, ("a", 2): 0.1, ("b", 1): 0.05}
    sums = Sums({}, base)
    if own:
        # a cut that brings it closer to the reference says nothing of the power
        found["c", 1] = 0.02
        sums.candidates["c", 1] = Paired(
            1000, 900, 500.0, 1000 * own - 1e-9, 900, 500.0, 0, 1000 * own
        )
    for name in [("a", 1), ("a", 2)]:
        kl = 3 * found[name] ** 2
        lost = round(1000 * 0.2 * kl)
        sums.candidates[name] = Paired(
            1000,
            900 - lost,
            500.0 + 2000 * kl,
            1000 * (own + kl),
            900,
            500.0,
            lost,
            1000 * own,
        )
    values = calibrate(found, sums, images=77)["b", 1]
    added = 3 * 0.05**2
    assert values.kl == pytest.approx(own + added)
    assert values.loss == pytest.approx(0.5 + 2 * added)
    assert values.top1 == pytest.approx(90.0 - 20 * added, abs=1e-3)
    assert values.drop == pytest.approx(20 * added, abs=1e-3)
    assert (values.images, values.method) == (77, "estimated")


@pytest.fixture
def ranking(network):
    wanted = (
        "stage4.block1.mlp.hidden",
        "stage4.block1.attn.query_key",
        "stage3.block1.mlp.hidden",
    )
    return Ranking(network, protect=[n for n in network.channel_groups() if n not in wanted])


def test_an_estimated_table_serves_as_a_measured_one(network, ranking, images, labels, tmp_path):
    batches, ratios = [(images, labels)], [0.2, 0.4, 0.7]
    before = copy.deepcopy(network.state_dict())
    path = tmp_path / "estimated.csv"
    table = estimate_sensitivity(network, batches, ratios, ranking, path, CPU, batches, 4)
    assert same_bits(network.state_dict(), before)
    whole = measure_sensitivity(network, batches, ratios, ranking, tmp_path / "m.csv", CPU)
    assert list(table.columns) == COLUMNS
    facts = COLUMNS[: COLUMNS.index("images")]
    assert table[facts].equals(whole[facts])
    assert table.method.value_counts().to_dict() == {"estimated": 5, "measured": 4}
    # what is measured is what the whole analysis measures
    measured = table.method == "measured"
    assert table[measured].equals(whole[measured])
    for costs in cost_curves(table, "kl").values():
        assert (np.diff(costs[1]) >= 0).all()
    summary = json.loads((tmp_path / "estimated.json").read_text())
    assert summary["measured"] == 4
    assert set(summary["rank_correlation"]) == {"kl", "loss", "top1"}


def test_a_silent_group_is_predicted_to_cost_nothing(network, images, labels):
    group = network.channel_groups()["stage4.block1.mlp.hidden"]
    with torch.no_grad():
        # its spikes are never there
        network.stage4.block1.mlp.bn1.weight.zero_()
        network.stage4.block1.mlp.bn1.bias.fill_(-1.0)
    effects = log_odds_effects(network, [group], images, labels)[group.name]
    assert not effects.any()
    plan = Ranking(network).plan({group.name: 10})
    with torch.no_grad(), masked(network, plan):
        masked_logits = network(images)
    with torch.no_grad():
        assert torch.equal(masked_logits, network(images))


def test_a_group_that_nothing_reads(images, labels):
    network = alive(QueryBlock(8))
    group = network.channel_groups()["stage1.0.query"]
    with pytest.raises(UserError, match="query: .*neither consumers nor neurons"):
        log_odds_effects(network, [replace(group, neurons=())], images, labels)
    # kept for a checkpoint, never run
    network.stage1[0].unused = nn.Conv2d(8, 8, 1)
    unread = replace(group, name="unread", consumers=("stage1.0.unused",))
    effects = log_odds_effects(network, [group, unread], images, labels)
    assert effects["unread"].shape == (11, 8) and not effects["unread"].any()
    assert effects[group.name].any()


def test_where_nothing_can_be_cut_nothing_is_correlated():
    assert rank_correlation({}, {}, "top1") is None
