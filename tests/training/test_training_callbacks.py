"""Pruning inside Lightning: what it trains is what ``prune`` makes, and nothing dead is trained."""

import copy

import pytest
import torch
from colours import half_of_all
from lightning import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from psvit.pruning import prune, pruned_parameters
from psvit.training.callbacks import PruneBeforeFit
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

RECIPE = Recipe(
    epochs=1,
    lr=1e-3,
    weight_decay=0.05,
    warmup_epochs=0,
    min_lr=1e-5,
    label_smoothing=0.0,
)


class Look(Callback):
    """What Lightning is about to train."""

    def on_train_start(self, trainer, pl_module):
        self.state = copy.deepcopy(pl_module.network.state_dict())
        (optimizer,) = trainer.optimizers
        self.optimized = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = list(pl_module.network.parameters())

    def on_train_end(self, trainer, pl_module):
        self.with_state = set(trainer.optimizers[0].state)


def fit(network, images, labels, folder, callback):
    look, module = Look(), Classifier(network.train(), RECIPE, 5, "finetune")
    loader = DataLoader(TensorDataset(images.float(), labels), 4)
    Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[callback, look],
    ).fit(module, loader, loader)
    return look, module


@pytest.fixture
def fitted(network, images, labels, tmp_path):
    network = network.float()
    plan, base = half_of_all(network), copy.deepcopy(network)
    look, module = fit(network, images, labels, tmp_path, PruneBeforeFit(plan))
    return base, plan, look, module


def test_training_starts_from_what_prune_makes(fitted):
    base, plan, look, _ = fitted
    expected = prune(base, plan).state_dict()
    assert look.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(look.state[name], tensor), name


def test_the_optimizer_holds_the_pruned_parameters_and_none_else(fitted):
    base, plan, look, module = fitted
    assert len(look.optimized) == len(look.parameters)
    assert {id(p) for p in look.optimized} == {id(p) for p in look.parameters}
    # they are the network's at the end, too, and the optimizer has moved them
    assert [id(p) for p in module.network.parameters()] == [id(p) for p in look.parameters]
    assert {id(p) for p in look.with_state} == {id(p) for p in look.parameters}
    assert not torch.equal(module.network.head.fc.weight, look.state["head.fc.weight"])
    assert sum(p.numel() for p in look.optimized) == pruned_parameters(base, plan)


def test_training_starts_from_recovered_weights(network, images, labels, tmp_path):
    network = network.float()
    plan = half_of_all(network)
    recovered = {
        name: tensor + 1 if tensor.is_floating_point() else tensor
        for name, tensor in prune(network, plan).state_dict().items()
    }
    look, _ = fit(network, images, labels, tmp_path, PruneBeforeFit(plan, recovered))
    for name, tensor in recovered.items():
        assert torch.equal(look.state[name], tensor), name


def test_only_a_fit_prunes(network):
    before = copy.deepcopy(network.state_dict())
    module = Classifier(network, RECIPE, 5, "finetune")
    callback = PruneBeforeFit(half_of_all(network))
    for stage in ("validate", "test", "predict"):
        callback.setup(None, module, stage)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
