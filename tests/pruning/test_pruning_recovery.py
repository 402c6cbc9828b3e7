"""Least squares against numpy's, batch norms against the statistics of what enters them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.models import SpikingTransformer
from psvit.models.blocks import MLP, Downsample, Head, ResidualBlock
from psvit.pruning import prune
from psvit.pruning.ranking import Ranking, units_removed
from psvit.pruning.recovery import recover


@pytest.fixture
def calibration():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=generator) for _ in range(3)]


def half(network, *names):
    ranking = Ranking(network)
    return ranking.plan({name: units_removed(ranking.groups[name], 0.5) for name in names})


def entering(network, path, batches):
    """What a layer reads, over all batches: list of its inputs."""
    seen = []
    handle = network.get_submodule(path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        for batch in batches:
            network(batch)
    handle.remove()
    return seen


@pytest.mark.parametrize(
    "group, consumer",
    [
        ("stage3.block1.mlp.hidden", "stage3.block1.mlp.conv2"),
        ("stage3.block1.attn.value", "stage3.block1.attn.projection.conv1"),
        ("stage1b.block1.mlp.hidden", "stage1b.block1.mlp.conv2"),
    ],
)
def test_weights_are_those_of_an_ordinary_least_squares_fit(network, calibration, group, consumer):
    plan = half(network, group)
    mended = recover(prune(network, plan), network, plan, calibration, "least_squares", ridge=1e-9)
    layer, base = mended.get_submodule(consumer), network.get_submodule(consumer)
    # shifted inputs, without unfold: rows (T·B, y, x), columns (c, dy, dx)
    size, pad = base.kernel_size[0], base.padding[0]
    columns, outputs = [], []
    for x in entering(network, consumer, calibration):
        kept = nn.functional.pad(x[:, list(plan[group])], [pad] * 4)
        height, width = x.shape[2:]
        shifts = [
            kept[:, :, dy : dy + height, dx : dx + width]
            for dy in range(size)
            for dx in range(size)
        ]
        columns.append(torch.stack(shifts, 2).flatten(1, 2).movedim(1, -1).flatten(0, -2))
        outputs.append(
            nn.functional.conv2d(x, base.weight, padding=pad).movedim(1, -1).flatten(0, -2)
        )
    a, b = torch.cat(columns).numpy(), torch.cat(outputs).detach().numpy()
    expected = np.linalg.lstsq(a, b, rcond=None)[0].T
    ours = layer.weight.detach().flatten(1).numpy()
    assert np.abs(ours @ a.T - expected @ a.T).max() < 1e-5
    before = prune(network, plan).get_submodule(consumer).weight.detach().flatten(1).numpy()
    assert np.square(ours @ a.T - b.T).mean() < 0.9 * np.square(before @ a.T - b.T).mean()


def test_currents_of_a_redundant_channel_are_rebuilt_exactly(network, calibration):
    # channels 0 and 1 made twins: whatever reads channel 1 can read channel 0 instead
    mlp = network.stage3.block1.mlp
    for tensor in (
        *mlp.conv1.parameters(),
        *mlp.bn1.parameters(),
        mlp.bn1.running_mean,
        mlp.bn1.running_var,
    ):
        tensor.data[1] = tensor.data[0]
    group = network.channel_groups()["stage3.block1.mlp.hidden"]
    plan = Plan({group.name: [i for i in range(group.size) if i != 1]})
    pruned = prune(network, plan)
    images = calibration[0]
    with torch.no_grad():
        expected = network(images)
        assert not torch.allclose(pruned(images), expected, atol=1e-3)
        recover(pruned, network, plan, calibration, "least_squares", ridge=1e-10)
        assert torch.allclose(pruned(images), expected, atol=1e-5)


def estimate(network, batches):
    """Give a network's batch norms the mean statistics of what enters them, by torch alone."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def test_batch_norms_hold_the_statistics_of_the_calibration_images(network, calibration):
    # a base network whose own statistics are those of these images: nothing is left to cancel
    estimate(network, calibration)
    plan = half(network, "stage2.block1.mlp.hidden", "stage3.block1.attn.value")
    mended = recover(prune(network, plan), network, plan, calibration, "bn")
    # what enters the first batch norm does not depend on any other
    path = "stage1a.downsample.bn"
    seen = entering(mended, path, calibration)
    expected = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    assert torch.allclose(mended.get_submodule(path).running_mean, expected, atol=1e-12)
    # behind others it does: they normalise by the batch while they are estimated
    behind = "stage2.block1.mlp.bn2"
    expected = torch.stack([x.mean((0, 2, 3)) for x in entering(mended, behind, calibration)]).mean(
        0
    )
    found = mended.get_submodule(behind).running_mean
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert (network.get_submodule(behind).running_mean - expected).norm() > 0.3 * expected.norm()
    assert mended.get_submodule(path).momentum == network.get_submodule(path).momentum
    assert not any(module.training for module in mended.modules())


def test_batches_count_by_their_images(network, calibration):
    batches = [calibration[0][:1], calibration[1]]
    plan, path = half(network, "stage1b.block1.mlp.hidden"), "stage1b.block1.mlp.bn2"
    pruned, before = prune(network, plan), network.get_submodule(path).running_mean.clone()
    # what enters the batch norm while its statistics are taken
    means = []
    for each in (network, pruned):
        means.append(seen := [])
        each.get_submodule(path).register_forward_pre_hook(
            lambda norm, args, seen=seen: (
                seen.append(args[0].mean((0, 2, 3))) if norm.training else None
            )
        )
    recover(pruned, network, plan, batches, "bn")
    few, many = (ours - theirs for theirs, ours in zip(*means, strict=True))
    found = pruned.get_submodule(path).running_mean - before
    assert torch.allclose(found, (few + 6 * many) / 7, atol=1e-12)
    assert not torch.allclose(found, (few + many) / 2, atol=1e-3)


@pytest.mark.parametrize("method", ["bn", "least_squares", "both"])
def test_a_cut_that_changes_nothing_leaves_every_weight_and_statistic(network, calibration, method):
    """Whatever the images are: their own statistics differ from the network's by far."""
    group = "stage2.block1.mlp.hidden"
    silent = [1, 5]
    consumer = network.stage2.block1.mlp.conv2
    consumer.weight.data[:, silent] = 0.0
    size = network.channel_groups()[group].size
    plan = Plan({group: [i for i in range(size) if i not in silent]})
    pruned = prune(network, plan)
    before = copy.deepcopy(pruned.state_dict())
    images = [3.0 * batch + 1.0 for batch in calibration]
    after = recover(pruned, network, plan, images, method).state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


@pytest.mark.parametrize("method, share", [("bn", 1.0), ("least_squares", 0.7), ("both", 0.7)])
def test_outputs_come_closer_to_the_base_networks(network, calibration, method, share):
    ranking = Ranking(network, kinds=["hidden", "value", "stream"])
    plan = ranking.plan({n: units_removed(g, 0.3) for n, g in ranking.groups.items()})
    pruned = prune(network, plan)
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        images = torch.cat(calibration)
        expected, plain = network(images), pruned(images)
        mended = recover(pruned, network, plan, calibration, method)(images)
    assert (mended - expected).square().mean() < share * (plain - expected).square().mean()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_none_and_an_empty_plan_change_no_bit(network, calibration):
    plan = half(network, "stage3.block1.mlp.hidden")
    pruned = prune(network, plan)
    before = copy.deepcopy(pruned.state_dict())
    recover(pruned, network, plan, calibration, "none")
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.state_dict().items())
    whole = recover(copy.deepcopy(network), network, Plan(), calibration, "both")
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.state_dict().items())


def test_what_a_cut_has_not_changed_stays_to_the_bit(network, calibration):
    # in float32, where a sum and its difference do not come back to what they were
    network = network.float()
    plan = half(network, "stage4.block1.mlp.hidden")
    pruned = prune(network, plan)
    before = copy.deepcopy(pruned.state_dict())
    recover(pruned, network, plan, [images.float() for images in calibration], "both")
    cut = "stage4.block1.mlp."
    changed = {
        name
        for name, tensor in pruned.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed and all(name.startswith((cut, "head")) for name in changed)


class OnePixel(SpikingTransformer):
    """One step, and one pixel behind the stem."""

    def __init__(self):
        super().__init__(time_steps=1)
        self.stem = Downsample(3, 8, kernel_size=3, stride=8)
        self.block = ResidualBlock(0.0, mlp=MLP(8, 16))
        self.head = Head(8, 4)
        self.init_weights()


@pytest.mark.parametrize(("sizes", "told"), [([4, 1], True), ([1, 4], True), ([2, 3], False)])
def test_a_batch_of_one_image_of_one_pixel_is_told(sizes, told):
    torch.manual_seed(0)
    network, plan = OnePixel().eval(), Plan({"block.mlp.hidden": range(8)})
    batches = torch.randn(5, 3, 8, 8).split(sizes)
    if told:
        with pytest.raises(UserError, match="pruning.calibration_images=5: .* one pixel"):
            recover(prune(network, plan), network, plan, batches, "bn")
    else:
        mended = recover(prune(network, plan), network, plan, batches, "bn").state_dict()
        assert all(torch.isfinite(tensor).all() for tensor in mended.values())
    # weights need no variance
    recover(prune(network, plan), network, plan, batches, "least_squares")
