"""The LightningModule: it learns, forgets between batches, and follows timm's schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from colours import separable, small
from lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

RECIPE = Recipe(
    epochs=8,
    lr=5e-3,
    weight_decay=0.05,
    warmup_epochs=1,
    min_lr=1e-4,
    label_smoothing=0.1,
)


def trainer(tmp_path, epochs, *callbacks):
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )


class Record(Callback):
    """The learning rate of every step, the metrics of every epoch, each parameter's decay."""

    def __init__(self):
        self.lr, self.metrics, self.modes, self.decay = [], [], [], {}

    def on_train_start(self, trainer, pl_module):
        for group in trainer.optimizers[0].param_groups:
            self.decay.update({id(each): group["weight_decay"] for each in group["params"]})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.lr.append([group["lr"] for group in optimizer.param_groups])
        self.modes.append(pl_module.network.training)

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append({name: float(x) for name, x in trainer.callback_metrics.items()})


def fit(tmp_path, recipe, batch_size=8):
    torch.manual_seed(1)
    record, module = Record(), Classifier(small(), recipe, 3, "base")
    # shuffled: batch norms of batches of one class would learn nothing
    loader = DataLoader(separable(), batch_size, shuffle=True)
    trainer(tmp_path, recipe.epochs, record).fit(module, loader, DataLoader(separable(), 96))
    return record, module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("fit"), RECIPE)


def test_it_learns(trained):
    record, module = trained
    assert record.metrics[-1]["base/loss"] < 0.7 * record.metrics[0]["base/loss"]
    images, labels = separable().tensors
    with torch.no_grad():
        right = (module.eval()(images).argmax(1) == labels).float().mean().item()
    assert right == record.metrics[-1]["base/val_top1"] > 0.9
    # validation leaves no trace on training
    assert all(record.modes)


def test_the_schedule_warms_up_and_decays_to_its_end(trained):
    record, _ = trained
    steps, warm = 8 * 12, 12
    assert len(record.lr) == steps
    lr, least = RECIPE.lr, RECIPE.min_lr
    for step, rates in enumerate(record.lr):
        if step < warm:
            expected = lr / 100 + (lr - lr / 100) * step / warm
        else:
            share = (step - warm) / (steps - warm)
            expected = least + (lr - least) * (1 + math.cos(math.pi * share)) / 2
        assert rates == pytest.approx([expected] * len(rates), rel=1e-9), step
    assert record.lr[warm][0] == pytest.approx(lr)
    assert record.lr[-1][0] < 2 * least


def test_biases_and_batch_norms_do_not_decay(trained):
    record, module = trained
    decay = dict(record.decay)
    for submodule in module.network.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            filters = isinstance(submodule, (nn.Conv2d, nn.Linear)) and name == "weight"
            assert decay.pop(id(parameter)) == (RECIPE.weight_decay if filters else 0.0)
    assert not decay


def test_label_smoothing_is_in_the_training_loss_only():
    smoothed = Classifier(small(), replace(RECIPE, label_smoothing=0.2), 3, "base").loss
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    by_hand = -(0.8 * log_p[0] + 0.2 * log_p.mean())
    assert smoothed(logits, labels).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_no_batch_remembers_the_one_before(network, images):
    module = Classifier(network, RECIPE, 5, "base")
    first, second = images[:4], images[4:8]
    with torch.no_grad():
        expected = module(first)
        assert torch.equal(module(first), expected)
        assert not torch.equal(module(second), expected)
        assert torch.equal(module(first), expected)
    # with gradients, and after another shape
    module(images[:3]).sum().backward()
    assert torch.equal(module(first).detach(), expected)
    module(second).sum().backward()


def test_a_training_step_does_not_depend_on_the_one_before(network, images, labels):
    module = Classifier(network, RECIPE, 5, "base")
    module.log = lambda *args, **kwargs: None
    gradients = []
    for batches in ([slice(0, 4)], [slice(4, 11), slice(0, 4)]):
        for batch in batches:
            network.zero_grad()
            module.training_step((images[batch], labels[batch]), 0).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(alone, after) for alone, after in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


class Seen(nn.Module):
    """Remembers what it was shown; its logits are not the same for all images."""

    def forward(self, images):
        self.images = images.clone()
        return torch.linspace(-1, 2, 3 * len(images)).reshape(-1, 3)


def stepped(recipe, images, labels):
    """The loss of a training step, the images that the network saw, and its logits."""
    module = Classifier(Seen(), recipe, 3, "base")
    module.log = lambda *args, **kwargs: None
    loss = module.training_step((images, labels), 0)
    return loss, module.network.images, module.network(images)


def test_without_mixing_the_labels_are_plain(images):
    images, labels = images[:5].float(), torch.tensor([0, 2, 1, 1, 0])
    loss, seen, logits = stepped(replace(RECIPE, label_smoothing=0.0), images, labels)
    assert torch.equal(seen, images)
    by_hand = -sum(row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)) / 5
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("count", [6, 5, 1])
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_the_labels_are_mixed_as_the_images_are(mixing, count, frames):
    # image i is 1 in channel i alone: the mean of a channel is an image's share of the mixture
    images = torch.eye(count)[:, :, None, None].repeat(1, 1, 16, 16)
    if frames:
        images = images[:, None].repeat(1, frames, 1, 1, 1)
    labels = torch.tensor([0, 2, 1, 1, 0, 0])[:count]
    # numpy's state decides how much and where
    np.random.seed(0)
    recipe = replace(RECIPE, label_smoothing=0.3, **{mixing: 1.0})
    loss, seen, logits = stepped(recipe, images.clone(), labels)
    assert seen.shape == images.shape
    if frames:
        # a recording is cut alike at all times
        assert torch.equal(seen, seen[:, :1].expand_as(seen))
        seen = seen[:, 0]
    shares = seen.mean((2, 3))
    assert torch.allclose(shares.sum(1), torch.ones(count))
    if mixing == "cutmix":
        assert set(seen.unique().tolist()) <= {0.0, 1.0}
    else:
        assert torch.allclose(seen, shares[:, :, None, None].expand_as(seen))
    if count > 1:
        assert 0 < shares[1, 1] < 1
    targets = shares @ (0.7 * torch.eye(3)[labels] + 0.1)
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
