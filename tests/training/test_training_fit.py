"""Which weights a training keeps: averaged, best, and the same when it was cut off on the way."""

import random

import numpy as np
import pytest
import torch
from colours import TINY, half_of_all, separable, small
from lightning import Callback, LightningDataModule
from omegaconf import OmegaConf
from torch.utils.data import TensorDataset

from psvit.data import create_data
from psvit.errors import UserError
from psvit.pruning import prune
from psvit.training import fit as training
from psvit.training.callbacks import PruneBeforeFit
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

RECIPE = Recipe(epochs=3, lr=5e-3, warmup_epochs=1, label_smoothing=0.1)
CLASSES = 3


@pytest.fixture(scope="module")
def trainer(config):
    return config("dataset=digits").trainer


def colours():
    data = separable(24, TINY["image_size"])
    return LightningDataModule.from_datasets(data, data, batch_size=8)


def fit(trainer, folder, recipe, *callbacks, network=None, data=None, prefix="base"):
    """The network that is kept."""
    network = small(**TINY) if network is None else network
    data = colours() if data is None else data
    module = Classifier(network, recipe, getattr(data, "num_classes", CLASSES), prefix)
    return training.fit(module, data, trainer, folder, [], callbacks)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Follow(Callback):
    """The weights after every step; those of every validation, and its accuracy."""

    def __init__(self):
        self.steps, self.validated, self.top1 = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append(state(pl_module.network))

    def on_validation_batch_start(self, trainer, pl_module, batch, index):
        if index == 0 and not trainer.sanity_checking:
            self.validated.append(state(pl_module.network))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.top1.append(float(trainer.callback_metrics[f"{pl_module.prefix}/val_top1"]))


class Answer(Callback):
    """Makes the network of each epoch answer one class to every image."""

    def __init__(self, classes):
        self.classes = classes

    def on_train_batch_end(self, trainer, pl_module, *_):
        head = pl_module.network.head.fc
        head.weight.data.zero_()
        head.bias.data.zero_()[self.classes[trainer.current_epoch]] = 1.0


@pytest.mark.parametrize("decay", [0.3, 0.9999])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_average_by_hand(trainer, tmp_path, decay, pruned):
    network, follow = small(**TINY), Follow()
    plan = half_of_all(network)
    expected_shapes = prune(network, plan).state_dict() if pruned else network.state_dict()
    recipe = Recipe(epochs=2, lr=5e-3, ema_decay=decay)
    callbacks = [PruneBeforeFit(plan)] if pruned else []
    kept = fit(trainer, tmp_path, recipe, follow, *callbacks, network=network).state_dict()
    assert len(follow.steps) == 6
    first, last = follow.steps[0], follow.steps[-1]
    forgot = []
    for name, tensor in kept.items():
        assert tensor.shape == expected_shapes[name].shape and tensor.isfinite().all()
        if not tensor.is_floating_point():
            # how many batches a batch norm has seen
            assert torch.equal(tensor, last[name]) and tensor == 6
            continue
        average = first[name].double()
        for n, weights in enumerate(follow.steps[1:], 1):
            now = min(decay, (1 + n) / (10 + n))
            average = now * average + (1 - now) * weights[name].double()
        torch.testing.assert_close(tensor.double(), average, rtol=1e-4, atol=1e-5)
        forgot.append((tensor - last[name]).norm() < (tensor - first[name]).norm())
    # a slow average, too, has left the beginning behind it; and it is one
    assert np.mean(forgot) > 0.8
    assert not same(kept, last)


def skewed():
    """Of 24 labels, 4 are 0, 8 are 1 and 12 are 2."""
    images, _ = separable(24, TINY["image_size"]).tensors
    data = TensorDataset(images, torch.tensor([0, 1, 1, 2, 2, 2]).repeat(4))
    return LightningDataModule.from_datasets(data, data, batch_size=12)


@pytest.mark.parametrize(
    ("every", "top1"), [(1, [1 / 6, 1 / 2, 1 / 3, 1 / 3]), (2, [1 / 2, 1 / 3])]
)
@pytest.mark.parametrize("decay", [None, 0.1])
def test_the_best_epoch_is_kept(trainer, tmp_path, decay, every, top1):
    network, follow = small(**TINY), Follow()
    callbacks = [follow, Answer([0, 2, 1, 1]), PruneBeforeFit(half_of_all(network))]
    recipe = Recipe(epochs=4, lr=5e-3, ema_decay=decay, keep="best")
    trainer = OmegaConf.merge(trainer, {"check_val_every_n_epoch": every})
    kept = fit(trainer, tmp_path, recipe, *callbacks, network=network, data=skewed())
    assert follow.top1 == pytest.approx(top1)
    assert same(kept.state_dict(), follow.validated[top1.index(1 / 2)])


def test_the_last_epoch_is_kept_though_it_is_worse(trainer, tmp_path):
    follow = Follow()
    kept = fit(trainer, tmp_path, RECIPE, follow, Answer([2, 2, 0]), data=skewed())
    assert follow.top1 == pytest.approx([1 / 2, 1 / 2, 1 / 6])
    assert same(kept.state_dict(), follow.validated[-1])


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends a training in the middle of an epoch, or after the last one."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            raise Killed

    def on_fit_end(self, trainer, pl_module):
        raise Killed


DRAWS = (
    # from torch's, Python's and numpy's random states
    "dataset.augment.crop_padding=2",
    "dataset.augment.auto_augment=rand-m7-mstd0.5-inc1",
    "dataset.train_images=20",
    "dataset.val_images=20",
    "dataset.batch_size=10",
    "dataset.image_size=16",
)
MIXING = Recipe(
    epochs=2, lr=5e-3, warmup_epochs=1, min_lr=1e-5, mixup=0.4, cutmix=1.0, ema_decay=0.9
)


@pytest.mark.parametrize(
    ("recipe", "epoch", "workers", "every"),
    [
        (MIXING, 1, 0, 1),
        (MIXING, 1, 1, 1),
        # after the last epoch
        (MIXING, None, 0, 1),
        (Recipe(epochs=3, lr=5e-3, keep="best"), 2, 0, 1),
        # after an epoch without validation
        (Recipe(epochs=3, lr=5e-3, ema_decay=0.5, keep="best"), 1, 0, 2),
    ],
)
def test_a_training_that_was_cut_off_goes_on(config, tmp_path, recipe, epoch, workers, every):
    cfg = config(
        *DRAWS, f"dataset.num_workers={workers}", f"trainer.check_val_every_n_epoch={every}"
    )

    def train(folder, seed, *callbacks):
        # what a checkpoint brings back does not depend on how a run begins
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)
        network = small(**TINY, num_classes=10, drop_path_rate=0.3)
        if seed:
            network.init_weights()
        torch.manual_seed(seed)
        plan = half_of_all(network)
        data = create_data(cfg.dataset, 0)
        kept = fit(
            cfg.trainer,
            folder,
            recipe,
            PruneBeforeFit(plan),
            *callbacks,
            network=network,
            data=data,
        )
        return state(kept), (random.random(), np.random.rand(), torch.rand(1).item())

    follow = Follow()
    expected, drawn = train(tmp_path / "whole", 0, follow)
    with pytest.raises(Killed):
        train(tmp_path / "cut", 0, Kill(epoch))
    last = tmp_path / "cut" / "checkpoints" / "base" / "last.ckpt"
    assert last.exists()
    continued = Follow()
    found, drawn_again = train(tmp_path / "cut", 1, continued)
    # it goes on from the last whole epoch
    epochs = recipe.epochs if epoch is None else epoch
    assert len(continued.steps) == len(follow.steps) - 2 * epochs
    assert same(found, expected)
    assert drawn_again == drawn


def test_a_damaged_checkpoint_is_one_line_and_stays(trainer, tmp_path):
    last = tmp_path / "checkpoints" / "base" / "last.ckpt"
    with pytest.raises(Killed):
        fit(trainer, tmp_path, RECIPE, Kill(1))
    whole = last.read_bytes()
    weights = torch.load(last, weights_only=True)["state_dict"]["network.head.fc.weight"]
    values = weights.numpy().tobytes()
    assert values in whole
    # which torch itself would load
    edited = whole.replace(values, bytes(len(values)))
    torch.save({"state_dict": {}}, last)
    for data in (whole[:-100], edited, b"text", last.read_bytes()):
        last.write_bytes(data)
        with pytest.raises(UserError) as error:
            fit(trainer, tmp_path, RECIPE)
        message = str(error.value)
        assert message.startswith(f"resume={last}: cannot be read") and "\n" not in message
        assert f"remove {last.parent} to train" in message
        assert last.read_bytes() == data


@pytest.mark.parametrize("decay", [None, 0.1])
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("prefix", ["base", "finetune"])
def test_the_start_counts_in_fine_tuning(trainer, tmp_path, decay, killed, prefix):
    plan = half_of_all(small(**TINY))

    def train(*callbacks):
        # half of the labels: as good as an answer of one class can be
        answering = small(**TINY)
        answering.head.fc.weight.data.zero_()
        answering.head.fc.bias.data.zero_()[2] = 1.0
        recipe = Recipe(epochs=3, lr=5e-3, ema_decay=decay, keep="best")
        callbacks = PruneBeforeFit(plan), Answer([0, 1, 2]), *callbacks
        given = {"network": answering, "data": skewed(), "prefix": prefix}
        return prune(answering, plan), fit(trainer, tmp_path, recipe, *callbacks, **given)

    if killed:
        with pytest.raises(Killed):
            train(Kill(2))
    follow = Follow()
    before, kept = train(follow)
    # the last epoch is as good, and comes later
    assert follow.top1[-1] == pytest.approx(1 / 2)
    # a base network begins with nothing that its epochs would have to beat
    expected = before.state_dict() if prefix == "finetune" else follow.validated[-1]
    assert same(kept.state_dict(), expected)


class Poison(Callback):
    """A weight that is no number, in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, index):
        if trainer.global_step == 4:
            pl_module.network.head.fc.bias.data[0] = float("nan")


def test_a_loss_that_is_no_number_ends_the_training(trainer, tmp_path):
    with pytest.raises(UserError) as error:
        fit(trainer, tmp_path, RECIPE, Poison())
    message = str(error.value)
    assert message.startswith("training.lr=0.005: base/loss is nan at epoch 2, step 5: ")
    assert "\n" not in message
    # the epoch before is still there
    last = tmp_path / "checkpoints" / "base" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["epoch"] == 0 and saved["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_a_loss_that_is_no_number_names_its_stage(images):
    network = small(**TINY)
    network.head.fc.bias.data[0] = float("inf")
    module = Classifier(network, RECIPE, CLASSES, "finetune")
    with pytest.raises(UserError, match=r"^finetune.lr=0.005: finetune/loss is nan"):
        module.training_step((images.float()[..., :16, :16], torch.zeros(11).long()), 0)
