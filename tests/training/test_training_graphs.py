"""Training steps as CUDA graphs: the same training, on the GPU and in whatever a CPU can show."""

import copy

import pytest
import torch
from colours import TINY, separable, small
from lightning import LightningDataModule, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from psvit.training.fit import fit
from psvit.training.graphs import GraphedNetwork
from psvit.training.module import Classifier
from psvit.training.recipe import Recipe

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def recorded(monkeypatch):
    """What torch is given to record; on a CPU it is run as torch warms up, and then called."""
    calls = []

    def record(network, samples):
        calls.append((network, samples, torch.is_autocast_cache_enabled()))
        for _ in range(3):
            network(*samples).sum().backward() if torch.is_grad_enabled() else network(*samples)
        torch.rand(7)
        network.zero_grad()
        return lambda *inputs: calls.append(inputs) or network(*inputs)

    monkeypatch.setattr("torch.cuda.make_graphed_callables", record)
    # where there is a GPU, checkpoints ask for its state without naming it
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device=None: torch.get_rng_state())
    monkeypatch.setattr(
        "torch.cuda.set_rng_state", lambda state, device=None: torch.set_rng_state(state)
    )
    return calls


def images(count=6):
    torch.manual_seed(3)
    return torch.rand(count, 3, TINY["image_size"], TINY["image_size"])


def test_recording_leaves_the_network_and_what_is_drawn(recorded):
    network = small(**TINY).train()
    batch, before = images(), copy.deepcopy(network.state_dict())
    drawn = torch.get_rng_state()
    graphed = GraphedNetwork(network, batch)
    ((given, samples, cached),) = recorded
    assert samples[0] is batch and not cached
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    # it puts another `forward` on what it is given: not on what is trained, saved and cut
    assert given is not network and "forward" not in vars(network)
    assert {id(p) for p in given.parameters()} == {id(p) for p in network.parameters()}
    assert not any(neuron.v for neuron in network.modules() if hasattr(neuron, "v_threshold"))

    other = copy.deepcopy(network)
    assert torch.equal(graphed(batch), other(batch))
    assert len(recorded) == 2
    # a batch that was not recorded
    assert torch.equal(graphed(batch[:3]), other(batch[:3]))
    assert len(recorded) == 2


def trained(config, folder, graphs, images, *overrides):
    """A student that was taught, and its teacher."""
    student, teacher = small(**TINY), small(**TINY)
    nn.init.normal_(teacher.head.fc.weight)
    recipe = Recipe(epochs=2, lr=5e-3, ema_decay=0.9, distill_weight=0.5, mixup=0.2)
    data = LightningDataModule.from_datasets(images, images, batch_size=6)
    data.val, data.cfg = images, config("dataset.batch_size=6").dataset
    # timm mixes by numpy's
    seed_everything(0, verbose=False)
    kept = fit(
        Classifier(student, recipe, 3, "finetune", teacher),
        data,
        config(f"trainer.cuda_graphs={graphs}", *overrides).trainer,
        folder,
        loggers=[],
    )
    return kept.cpu().state_dict(), teacher


def test_a_training_replays_student_and_teacher(config, tmp_path, recorded):
    # batches of 6, 6 and 3 images, the last one as it comes
    images = separable(15, TINY["image_size"])
    expected, _ = trained(config, tmp_path / "steps", "false", images)
    assert not recorded
    found, teacher = trained(config, tmp_path / "graphs", "true", images)
    replays = [call for call in recorded if torch.is_tensor(call[0])]
    assert len(recorded) - len(replays) == 2 and len(replays) == 2 * 2 * 2
    assert all(len(batch) == 6 for (batch,) in replays)
    assert not teacher.training
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


@needs_gpu
def test_a_graph_gives_what_its_kernels_give():
    network = small(**TINY).cuda().train()
    batch = images().cuda()
    twin = copy.deepcopy(network)
    graphed = GraphedNetwork(network, batch)
    for scale in (1.0, 0.5, 2.0):
        found, expected = graphed(scale * batch), twin(scale * batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for run, logits in ((network, found), (twin, expected)):
            run.zero_grad()
            logits.square().sum().backward()
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_learns_on_the_gpu(config, tmp_path, precision):
    images = separable(96, TINY["image_size"])
    overrides = ("trainer=gpu", f"trainer.precision={precision}")
    network = small(**TINY)
    data = LightningDataModule.from_datasets(images, images, batch_size=8)
    data.val, data.cfg = images, config("dataset.batch_size=8").dataset
    recipe = Recipe(epochs=12, lr=2e-2, warmup_epochs=1)
    options = config("trainer.cuda_graphs=true", *overrides).trainer
    kept = fit(Classifier(network, recipe, 3, "base"), data, options, tmp_path, loggers=[])
    batch, labels = next(iter(DataLoader(images, 96)))
    with torch.no_grad():
        right = (kept.cpu().eval()(batch).argmax(1) == labels).float().mean()
    assert right > 0.9
