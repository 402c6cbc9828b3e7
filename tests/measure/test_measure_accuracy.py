"""Accuracy and loss against sums by hand."""

import copy
import math

import pytest
import torch

from psvit.measure.accuracy import Tally, evaluate

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.5, 0.5, 0.0], [-1.0, 4.0, 0.0]])
LABELS = torch.tensor([0, 1, 0, 1])


def cross_entropy(logits, label):
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def test_a_tally_by_hand():
    tally = Tally().add(LOGITS, LABELS)
    # the second image is taken for class 2; of equal logits the first class counts
    assert (tally.images, tally.correct) == (4, 3)
    assert tally.top1 == 75.0
    assert tally.top1_stderr == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))
    losses = [cross_entropy(x, y) for x, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)]
    assert tally.loss == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert tally.as_dict() == {
        "top1": tally.top1,
        "top1_stderr": tally.top1_stderr,
        # of three classes, the five likeliest say nothing
        "top5": None,
        "top5_stderr": None,
        "loss": tally.loss,
        "images": 4,
    }


@pytest.mark.parametrize(("right", "guesses"), [(60, True), (68, True), (71, False), (100, False)])
def test_who_is_no_better_than_the_largest_class(right, guesses):
    # 60 of 100 images are of class 0; two standard errors are about nine points
    labels = torch.tensor([0] * 60 + [1] * 40)
    answers = torch.where(torch.arange(100) < right, labels, 1 - labels)
    tally = Tally(answers=[]).add(torch.nn.functional.one_hot(answers, 2).float(), labels)
    assert tally.top1 == right and tally.guesses == guesses


def test_divergence_by_hand():
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.5, 0.0], [-1.0, 0.0, 4.0]])
    total = 0.0
    for theirs, ours in zip(expected.double().softmax(1), LOGITS.double().softmax(1), strict=True):
        pairs = zip(theirs.tolist(), ours.tolist(), strict=True)
        total += sum(p * math.log(p / q) for p, q in pairs)
    assert Tally().add(LOGITS, LABELS, expected).kl == pytest.approx(total / 4, rel=1e-12)
    # a network does not diverge from itself
    assert Tally().add(LOGITS, LABELS, LOGITS).kl == 0.0


def test_weights_that_it_moved_can_be_trained(network):
    moved = copy.deepcopy(network)
    assert evaluate(moved, [], torch.device("meta"), copy.deepcopy(network)).images == 0
    assert all(tensor.is_meta and not tensor.is_inference() for tensor in moved.parameters())


def test_top5_by_hand():
    # the right class comes first, fifth, sixth and last of seven
    logits = torch.arange(7.0).flip(0).repeat(4, 1)
    tally = Tally().add(logits[:2], torch.tensor([0, 4]))
    tally.add(logits[2:], torch.tensor([5, 6]))
    assert (tally.top1, tally.top5) == (25.0, 50.0)
    assert tally.top5_stderr == pytest.approx(100 * math.sqrt(0.5 * 0.5 / 4))


@pytest.mark.parametrize("sizes", [(1000,), (1, 999), (300, 300, 400), (1,) * 1000])
def test_parts_add_up_to_the_whole(sizes):
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(1000, 7, generator=generator)
    labels = torch.randint(0, 7, (1000,), generator=generator)
    whole, parts = Tally().add(logits, labels), Tally()
    for x, y in zip(logits.split(sizes), labels.split(sizes), strict=True):
        parts.add(x, y)
    assert (parts.images, parts.correct) == (whole.images, whole.correct)
    assert parts.correct5 == whole.correct5 > whole.correct
    assert parts.loss == pytest.approx(whole.loss, abs=1e-12)
    assert 0 < whole.correct < 1000


class Scripted(torch.nn.Module):
    """Gives the image as logits, in evaluation mode and without gradients only."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        assert not self.training and torch.is_inference_mode_enabled()
        return x * self.scale


def test_evaluate_sees_every_batch_once():
    network, batches = Scripted().train(), zip(LOGITS.split(3), LABELS.split(3), strict=True)
    tally = evaluate(network, batches, torch.device("cpu"))
    assert tally == Tally().add(LOGITS, LABELS)


def test_evaluate_a_network(network, images, labels):
    cpu = torch.device("cpu")
    whole = evaluate(network, [(images, labels)], cpu)
    parts = evaluate(network, list(zip(images.split(4), labels.split(4), strict=True)), cpu)
    assert (parts.images, parts.correct) == (whole.images, whole.correct)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-9)
    with torch.no_grad():
        chosen = network(images).argmax(1)
    assert whole.correct == int((chosen == labels).sum())
    for tally in (whole, parts):
        kept = (torch.cat(part) for part in zip(*tally.answers, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(kept, (chosen, labels), strict=True))
