"""Changes by class counted by hand, and their standard errors against simulated ones."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.nn.functional import one_hot

from psvit.measure.accuracy import Tally
from psvit.measure.classes import class_changes, compare, confusion_changes

NAMES = ["ant", "bee", "cat"]
# four ants, three bees, no cat
LABELS = [0, 0, 0, 0, 1, 1, 1]
BEFORE = [0, 0, 0, 1, 1, 1, 0]
AFTER = [0, 2, 2, 0, 1, 1, 0]


def tally(chosen, labels, classes=3):
    logits = one_hot(torch.as_tensor(chosen), classes).double()
    return Tally(answers=[]).add(logits, torch.as_tensor(labels))


BASE, OTHER = tally(BEFORE, LABELS), tally(AFTER, LABELS)


def test_which_classes_paid_by_hand():
    ant, bee = class_changes(BASE, OTHER, NAMES).to_dict("records")
    assert ant == {
        "class": "ant",
        "images": 4,
        "top1_base": 75.0,
        "top1": 50.0,
        "top1_stderr": 25.0,
        "change": -25.0,
        # two lost and one gained of four: the differences -1, -1, 1, 0
        "change_stderr": pytest.approx(100 * math.sqrt((3 - 1 / 4) / 16)),
        "lost": 2,
        "gained": 1,
        "taken_for": "cat",
    }
    assert (bee["images"], bee["lost"], bee["gained"], bee["taken_for"]) == (3, 0, 0, "")
    assert bee["change"] == bee["change_stderr"] == 0
    assert bee["top1"] == bee["top1_base"] == pytest.approx(200 / 3)


def test_a_network_agrees_with_itself():
    assert compare(BASE, BASE) == {"agreement": 100.0, "drop_stderr": 0.0}
    assert (class_changes(BASE, BASE, NAMES)[["change", "lost", "gained"]] == 0).all(axis=None)
    assert (confusion_changes(BASE, BASE, NAMES)["change"] == 0).all()


def test_agreement_by_hand():
    assert compare(BASE, OTHER)["agreement"] == pytest.approx(100 * 4 / 7)


def test_confusion_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels, before, after = (torch.randint(0, 3, (50,), generator=generator) for _ in range(3))
    base, other = tally(before, labels), tally(after, labels)
    table = confusion_changes(base, other, NAMES).set_index(["class", "taken_for"])
    for column, chosen in (("images_base", before), ("images", after)):
        expected = confusion_matrix(labels, chosen)
        for row, label in enumerate(NAMES):
            for place, name in enumerate(NAMES):
                found = table[column].get((label, name), 0)
                assert found == expected[row, place]
    assert table["change"].sum() == 0
    by_class = class_changes(base, other, NAMES)
    lost = by_class["lost"].sum() - by_class["gained"].sum()
    assert base.correct - other.correct == lost


def test_standard_error_of_a_drop_is_the_spread_over_samples():
    # 400 test sets on which the second network gains 10 %, loses 20 %, and both fail on 20 %
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(400, 200, generator=generator)
    drops, errors = [], []
    for sample in drawn:
        wrong = (sample >= 0.3) & (sample < 0.5)
        before = ((sample >= 0.1) & ~wrong).long()
        after = (((sample < 0.1) | (sample >= 0.3)) & ~wrong).long()
        base, other = tally(before, [1] * 200), tally(after, [1] * 200)
        drops.append(base.top1 - other.top1)
        errors.append(compare(base, other)["drop_stderr"])
    spread = float(torch.tensor(drops).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)
    # which is less than if the two had seen different images
    alone = math.hypot(base.top1_stderr, other.top1_stderr)
    assert errors[-1] < alone


def test_networks_that_saw_other_images_are_not_compared():
    with pytest.raises(ValueError, match="different images"):
        compare(BASE, tally(AFTER, list(reversed(LABELS))))
