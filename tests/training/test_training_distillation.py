"""Distillation: its losses by hand, and a teacher that training leaves as it is."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from colours import TINY, half_of_all, separable, small
from lightning import Callback, LightningDataModule
from spikingjelly.activation_based.neuron import IFNode
from torch import nn

from psvit.neurons import reset_state
from psvit.training.callbacks import PruneBeforeFit
from psvit.training.distillation import distillation_loss, firing_rates, rates_loss
from psvit.training.fit import fit
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

RECIPE = Recipe(epochs=2, lr=5e-3, distill_weight=0.6, distill_temperature=2.0, distill_rates=3.0)


def softmax(logits, temperature):
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_by_hand(temperature):
    student = [[2.0, -1.0, 0.5], [0.0, 0.3, -0.2]]
    teacher = [[1.0, 0.0, 0.2], [-1.0, 2.0, 0.0]]
    by_hand = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = softmax(theirs, temperature), softmax(ours, temperature)
        by_hand += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    found = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.item() == pytest.approx(temperature**2 * by_hand, rel=1e-5)


def test_the_rates_by_hand():
    student = {"a": torch.tensor([0.1, 0.3]), "b": torch.tensor([0.5, 0.5]), "new": torch.ones(2)}
    teacher = {"a": torch.tensor([0.2, 0.0]), "b": torch.tensor([0.5, 0.1]), "gone": torch.ones(2)}
    by_hand = (0.1**2 + 0.3**2 + 0.0 + 0.4**2) / 4
    assert rates_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5, 5), (3, 2, 6)])
def test_firing_rates_of_each_image(shape):
    network = nn.Sequential(nn.Identity(), IFNode(step_mode="m"))
    currents = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    currents[:, 1] *= 1.5
    with firing_rates(network) as rates:
        spikes = network(currents)
    # spikes over neurons and time steps
    expected = [image.sum().item() / image.numel() for image in spikes.unbind(1)]
    assert rates["1"].tolist() == pytest.approx(expected)
    assert 0 < expected[0] < expected[1] < 1
    # what runs later is not watched
    watched = dict(rates)
    reset_state(network)
    network(torch.ones(shape))
    assert rates.keys() == watched.keys() and rates["1"] is watched["1"]


def gradients(student, teacher, recipe, images, labels):
    """The loss of a training step in evaluation mode, and the largest gradient."""
    module = Classifier(student, recipe, 5, "finetune", teacher)
    module.log = lambda *args, **kwargs: None
    loss = module.training_step((images, labels), 0)
    loss.backward()
    return loss.item(), max(p.grad.abs().max().item() for p in student.parameters())


def test_a_student_that_is_its_teacher_learns_nothing(network, images, labels):
    recipe = replace(RECIPE, distill_weight=1.0)
    loss, largest = gradients(network, copy.deepcopy(network), recipe, images, labels)
    assert abs(loss) < 1e-12 and largest < 1e-12
    # unless it is to follow the labels, too, or is another network
    network.zero_grad()
    loss, largest = gradients(network, copy.deepcopy(network), RECIPE, images, labels)
    assert loss > 0.01 and largest > 1e-6
    teacher = copy.deepcopy(network)
    nn.init.normal_(teacher.head.fc.weight)
    network.zero_grad()
    loss, largest = gradients(network, teacher, recipe, images, labels)
    assert loss > 0.01 and largest > 1e-6


def test_the_parts_of_the_loss(network, images, labels):
    teacher = copy.deepcopy(network)
    for parameter in teacher.parameters():
        parameter.data.mul_(1.1)
    with torch.no_grad(), firing_rates(network) as ours:
        logits = network(images)
    with torch.no_grad(), firing_rates(teacher) as theirs:
        taught = teacher(images)
    assert len(ours) > 10
    plain = nn.functional.cross_entropy(logits, labels).item()
    kl = distillation_loss(logits, taught, 2.0).item()
    rates = sum(((ours[name] - theirs[name]) ** 2).mean().item() for name in ours) / len(ours)
    assert min(plain, kl, rates) > 1e-6
    loss, _ = gradients(network, teacher, RECIPE, images, labels)
    assert loss == pytest.approx(0.4 * plain + 0.6 * kl + 3.0 * rates, rel=1e-9)


class Look(Callback):
    """The parameters that are trained, and what would be saved."""

    def on_train_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        self.optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.network = {id(p) for p in pl_module.network.parameters()}
        self.saved = pl_module.state_dict()


@pytest.mark.parametrize(("ema_decay", "precision"), [(None, 32), (0.9, 32), (None, "64-true")])
def test_training_leaves_the_teacher_as_it_is(config, tmp_path, ema_decay, precision):
    teacher, look = small(**TINY), Look()
    student, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    module = Classifier(student, replace(RECIPE, ema_decay=ema_decay), 3, "finetune", teacher)
    images = separable(12, TINY["image_size"])
    fit(
        module,
        LightningDataModule.from_datasets(images, images, batch_size=6),
        config("dataset=digits", f"trainer.precision={precision}").trainer,
        tmp_path,
        [],
        [PruneBeforeFit(half_of_all(teacher)), look],
    )
    assert look.optimized == look.network
    assert look.saved.keys() == {f"network.{name}" for name in before}
    # running statistics of batch norms among it
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype, name
        assert look.saved[f"network.{name}"].numel() <= tensor.numel()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.head.fc.in_features < teacher.head.fc.in_features
