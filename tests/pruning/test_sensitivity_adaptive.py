"""Rows that stop early: the interval by simulation and by hand, what is shown and what is told."""

import json
import random

import pytest
import torch

from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity import Stopping, measure_sensitivity
from psvit.pruning.sensitivity.tallies import BatchTally, Paired

CPU = torch.device("cpu")


def paired(images, lost, gained=0, base_correct=None):
    base_correct = images if base_correct is None else base_correct
    return Paired(images, base_correct - lost + gained, 0.0, 0.0, base_correct, 0.0, lost)


def test_the_interval_by_hand():
    # nothing lost of n: the upper bound of Clopper and Pearson is 1 - tail^(1 / n)
    low, high = Stopping(1.0, 0.96).interval(paired(100, 0, base_correct=90), look=1)
    bound = 100.0 * (1.0 - 0.005 ** (1 / 100))
    assert (low, high) == pytest.approx((-bound, bound))
    # a second look may err a third as often
    _, high = Stopping(1.0, 0.96).interval(paired(100, 0, base_correct=90), look=2)
    assert high == pytest.approx(100.0 * (1.0 - (0.04 / 6 / 4) ** (1 / 100)))


def test_looks_come_behind_batches_1_2_4():
    stopping, clear = Stopping(1.0, 0.95), paired(100, 60)
    assert [n for n in range(10) if stopping.decided(clear, n)] == [1, 2, 4, 8]
    assert not stopping.decided(paired(100, 1), 4)


def test_no_more_rows_end_on_the_wrong_side_than_was_promised():
    stopping, chance, wrong = Stopping(2.0, 0.8), random.Random(0), 0
    for _ in range(120):
        # the true drop is 3 points: above the tolerance
        tally, batch = Paired(), 25
        for batches in range(1, 33):
            lost = sum(chance.random() < 0.06 for _ in range(batch))
            gained = sum(chance.random() < 0.03 for _ in range(batch))
            tally = tally + paired(batch, lost, gained, base_correct=batch // 2)
            if stopping.decided(tally, batches):
                _, high = stopping.interval(tally, batches.bit_length())
                wrong += high < stopping.tolerance
                break
    assert wrong <= 0.2 * 120


def test_top1_of_a_part_of_the_images_stays_a_share():
    whole = paired(1000, 0, base_correct=733)
    # nothing left of easy images, and all of hard ones gained
    assert paired(128, 97, base_correct=98).top1(whole) == 0.0
    assert paired(128, 0, gained=97, base_correct=1).top1(whole) == 100.0


def test_variance_of_a_row_that_saw_a_part_of_the_images():
    # by drawing: b (base right) of N images, c (candidate right) of the first n of them
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4000):
        b = torch.rand(40, generator=generator) < 0.8
        c = torch.where(b, torch.rand(40, generator=generator) < 0.7, b)
        lost, right = int((b & ~c)[:10].sum()), int(b[:10].sum())
        tally = paired(10, lost, base_correct=right)
        base = paired(40, 0, base_correct=int(b.sum()))
        found.append((tally.top1(base), tally.top1_stderr(base)))
    tops, errors = torch.tensor(found).T
    assert tops.mean().item() == pytest.approx(56.0, abs=1.0)
    assert errors.square().mean().sqrt().item() == pytest.approx(tops.std().item(), rel=0.08)


def test_divergence_of_a_row_that_saw_a_part_of_the_images():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(3, 40, 5, generator=generator, dtype=torch.float64)
    reference, network, candidate = draw[0], draw[0] + draw[1], draw[0] + draw[1] + 0.1 * draw[2]
    labels = torch.zeros(40, dtype=torch.long)

    def kl(ours, theirs):
        return (theirs.softmax(1) * (theirs.log_softmax(1) - ours.log_softmax(1))).sum(1)

    whole = BatchTally(network, labels, reference)
    part = BatchTally(network[:10], labels[:10], reference[:10])
    base, row = whole.of(network), part.of(candidate[:10])
    # what the cut adds on the ten, above what the network has on all: easy images fall out
    added = (kl(candidate, reference) - kl(network, reference))[:10].mean()
    assert row.kl(base) == pytest.approx(float(kl(network, reference).mean() + added))
    every = whole.of(candidate).kl(base)
    assert every == pytest.approx(float(kl(candidate, reference).mean()))


def test_a_row_that_is_clear_is_shown_no_further_images(network, images, tmp_path):
    wanted = ("stage4.stream", "stage1b.block1.mlp.hidden")
    others = [name for name in network.channel_groups() if name not in wanted]
    ranking = Ranking(network, protect=others)
    with torch.no_grad():
        # the base network is always right
        labels = network(images).argmax(1)
    batches = list(zip(images.split(2), labels.split(2), strict=True))
    path = tmp_path / "sensitivity.csv"
    table = measure_sensitivity(
        network, batches, [0.1, 0.7], ranking, path, CPU, stopping=Stopping(60.0, 0.2)
    )
    whole = measure_sensitivity(network, batches, [0.1, 0.7], ranking, tmp_path / "w.csv", CPU)
    stopped = table[table.images < 11]
    assert 0 < len(stopped) < 4
    # what was stopped below the tolerance loses less than that on all images too
    assert ((100.0 - whole.top1[stopped.index]) < 60.0).all()
    going_on = table.images == 11
    assert table[going_on].equals(whole[going_on])
    summary = json.loads((tmp_path / "sensitivity.json").read_text())
    assert summary["stopped_early"] == len(stopped)
    assert summary["share_of_images_shown"] == pytest.approx(table.images.sum() / 44)
    assert summary["confidence_of_a_row"] == 0.2
