"""Importances from calibration images, against parameter gradients and counted spikes."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Echo, Smooth, recorded, score

from psvit.channels import ChannelGroup
from psvit.pruning.calibration import activity, gradients, singular_values
from psvit.pruning.importance import firing_rate, fisher, spike_rank, taylor

ATTENTION = "stage4.block1.attn"


# --- gradients


@pytest.mark.parametrize("scope", ["all", "first"])
def test_taylor_and_fisher_against_the_gradients_of_parameters(
    network, images, labels, batches, scope
):
    groups = network.channel_groups()
    gates = gradients(network, groups.values(), batches, scope=scope)
    per_image = {name: [] for name in groups}
    for image, label in zip(images[:5], labels[:5], strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        for name, group in groups.items():
            total = torch.zeros(group.size, dtype=torch.float64)
            for path in group.producers[: 1 if scope == "first" else None]:
                for parameter in network.get_submodule(path).parameters(recurse=False):
                    product = (parameter.grad * parameter.detach()).reshape(group.size, -1)
                    total += product.sum(1)
            per_image[name].append(total)
    for name, group in groups.items():
        sums = torch.stack(per_image[name])
        assert sums.abs().max() > 1e-6, f"{name}: a dead network"
        first_order = taylor(network, group, scope, gates)
        assert torch.allclose(first_order, sums.mean(0).abs(), rtol=1e-7, atol=1e-13), name
        assert torch.allclose(
            fisher(network, group, scope, gates), sums.square().mean(0), rtol=1e-7, atol=1e-15
        ), name
    # images pull in opposite directions, which only Fisher sees
    assert any(
        (torch.stack(sums).mean(0).square() < 0.5 * torch.stack(sums).square().mean(0)).any()
        for sums in per_image.values()
    )


@pytest.mark.parametrize("group", [Smooth.group, Smooth.halves], ids=["channels", "heads"])
def test_taylor_against_finite_differences(smooth, smooth_batches, group):
    def losses(unit, factor):
        """Each image's loss with all parameters of the unit multiplied."""
        scaled, run = copy.deepcopy(smooth), 4 // group.size
        with torch.no_grad():
            for path in group.producers:
                for parameter in scaled.get_submodule(path).parameters():
                    parameter[unit * run : (unit + 1) * run] *= factor
            return torch.cat(
                [F.cross_entropy(scaled(x), y, reduction="none") for x, y in smooth_batches]
            )

    step = 1e-5
    slopes = torch.stack(
        [
            (losses(unit, 1 + step) - losses(unit, 1 - step)) / (2 * step)
            for unit in range(group.size)
        ]
    )
    assert slopes.abs().min() > 1e-3
    first_order = score(taylor, gradients, smooth, group, smooth_batches)
    assert torch.allclose(first_order, slopes.mean(1).abs(), rtol=1e-6)
    second_moment = score(fisher, gradients, smooth, group, smooth_batches)
    assert torch.allclose(second_moment, slopes.square().mean(1), rtol=1e-6)


# --- spikes


@pytest.mark.parametrize(
    ("name", "neuron"),
    [
        ("stage2.block1.mlp.hidden", "stage2.block1.mlp.neuron2"),
        ("stage4.block1.mlp.hidden", "stage4.block1.mlp.neuron2"),
        (f"{ATTENTION}.value", f"{ATTENTION}.attention_neuron"),
    ],
)
def test_firing_rate_counts_spikes(network, images, batches, name, neuron):
    group = network.channel_groups()[name]
    spikes = recorded(network, neuron, images[:5])
    counts = [0] * group.size
    for image_spikes in spikes.flatten(0, 1):
        for channel, plane in enumerate(image_spikes):
            for spike in plane.flatten().tolist():
                assert spike in (0.0, 1.0)
                counts[channel] += spike == 1.0
    positions = spikes.numel() // group.size
    assert 0 < sum(counts) < spikes.numel()
    scores = score(firing_rate, activity, network, group, batches)
    assert scores.tolist() == pytest.approx([count / positions for count in counts], rel=1e-12)


def test_activity_of_real_values_of_heads_and_of_many_readers(network, images, batches):
    groups = network.channel_groups()

    def rates(path):
        return recorded(network, path, images[:5]).abs().mean((0, 1, 3, 4))

    # behind the depthwise convolution there is no neuron
    name = "stage2.block1.sep_conv"
    assert (recorded(network, f"{name}.depthwise", images[:5]) < 0).any()
    scores = score(firing_rate, activity, network, groups[f"{name}.hidden"], batches)
    assert torch.allclose(scores, rates(f"{name}.depthwise"), rtol=1e-12)
    # a head is the mean of its channels
    scores = score(firing_rate, activity, network, groups[f"{ATTENTION}.head"], batches)
    expected = rates(f"{ATTENTION}.attention_neuron").reshape(4, -1).mean(1)
    assert torch.allclose(scores, expected, rtol=1e-12)
    # the readers of the last stream: query, key and value, the MLP, the classifier
    head = []
    network.head.neuron.register_forward_hook(lambda *args: head.append(args[2]))
    with torch.no_grad():
        network(images[:5])
    expected = (
        3 * rates(f"{ATTENTION}.neuron") + rates("stage4.block1.mlp.neuron1") + head[0].mean((0, 1))
    ) / 5
    stream = groups["stage4.stream"]
    assert len(stream.consumers) == 5
    scores = score(firing_rate, activity, network, stream, batches)
    assert torch.allclose(scores, expected, rtol=1e-12)
    first = score(firing_rate, activity, network, stream, batches, "first")
    assert torch.allclose(first, rates(f"{ATTENTION}.neuron"), rtol=1e-12)


def test_query_and_key_share_a_rate(network, images, batches):
    group = network.channel_groups()[f"{ATTENTION}.query_key"]
    query, key = (
        recorded(network, f"{ATTENTION}.{name}_neuron", images[:5]).mean((0, 1, 3, 4))
        for name in ("query", "key")
    )
    assert (query != key).any()
    scores = score(firing_rate, activity, network, group, batches)
    expected = [math.sqrt(q * k) for q, k in zip(query, key, strict=True)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(score(firing_rate, activity, network, group, batches, "first"), query)


@pytest.mark.parametrize(
    ("name", "neurons"),
    [
        ("stage2.block1.mlp.hidden", ["stage2.block1.mlp.neuron2"]),
        (f"{ATTENTION}.head", [f"{ATTENTION}.attention_neuron"]),
        (f"{ATTENTION}.query_key", [f"{ATTENTION}.query_neuron", f"{ATTENTION}.key_neuron"]),
    ],
)
def test_spike_rank_against_nuclear_norms(network, images, batches, name, neurons):
    group = network.channel_groups()[name]
    scores = score(spike_rank, singular_values, network, group, batches)
    factors = []
    for path in neurons:
        maps = recorded(network, path, images[:5]).flatten(0, 1).numpy()
        channels = [
            np.mean([np.linalg.norm(m, "nuc") for m in maps[:, channel]])
            for channel in range(maps.shape[1])
        ]
        factors.append(np.reshape(channels, (group.size, -1)).mean(1))
    expected = np.prod(factors, axis=0) ** (1 / len(factors))
    assert expected.std() > 0
    assert scores.tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_spike_rank_tells_patterns_of_the_same_rate_apart():
    # as many spikes each: a diagonal has rank 5, a row has rank 1
    image = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    image[0, 0].fill_diagonal_(1.0)
    image[0, 1, 2] = 1.0
    group = ChannelGroup("g", "hidden", 2, ("read",), ("read",))
    batches = [(image, torch.tensor([0]))]
    assert score(firing_rate, activity, Echo(), group, batches).tolist() == [0.2, 0.2]
    ranks = score(spike_rank, singular_values, Echo(), group, batches)
    assert ranks.tolist() == pytest.approx([5.0, 5**0.5])
