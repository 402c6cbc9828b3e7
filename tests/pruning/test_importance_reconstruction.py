"""The importance ``reconstruction``, against least squares with the channel left out."""

import pytest
import torch
import torch.nn.functional as F
from tiny import Echo, Smooth, recorded, score
from torch import nn

from psvit.channels import ChannelGroup
from psvit.neurons import LIF, reset_state
from psvit.pruning.calibration import activity, singular_values
from psvit.pruning.gram import grams
from psvit.pruning.importance import firing_rate, reconstruction, spike_rank

ATTENTION = "stage4.block1.attn"


def patches(x, size, padding):
    """Rows of a convolution's inputs, with loops over positions."""
    x = F.pad(x, (padding,) * 4)
    return torch.stack(
        [
            image[:, row : row + size, column : column + size].flatten()
            for image in x
            for row in range(x.shape[2] - size + 1)
            for column in range(x.shape[3] - size + 1)
        ]
    )


def share_lost(x, weight, unit_columns, ridge):
    """Energy of the current that least squares cannot rebuild from the other columns."""
    others = [column for column in range(x.shape[1]) if column not in unit_columns]
    damping = ridge * x.square().sum(0).mean()
    gone = x[:, unit_columns] @ weight[:, unit_columns].T
    a = torch.cat([x[:, others], damping.sqrt() * torch.eye(len(others), dtype=x.dtype)])
    b = torch.cat([gone, torch.zeros(len(others), gone.shape[1], dtype=x.dtype)])
    residual = b - a @ torch.linalg.lstsq(a, b).solution
    return (residual.square().sum() / (x @ weight.T).square().sum()).item()


@pytest.mark.parametrize("ridge", [1e-9, 1e-3, 0.5])
@pytest.mark.parametrize("group", [Smooth.group, Smooth.halves], ids=["channels", "heads"])
def test_reconstruction_of_a_convolution_against_lstsq(smooth, smooth_batches, group, ridge):
    entering = []
    smooth.conv2.register_forward_pre_hook(lambda _, args: entering.append(args[0].detach()))
    matrices = grams(smooth, [group], smooth_batches)
    rows = torch.cat([patches(x, 3, 1) for x in entering])
    # 9 patch positions a channel
    columns = [
        list(range(unit * 36 // group.size, (unit + 1) * 36 // group.size))
        for unit in range(group.size)
    ]
    weight = smooth.conv2.weight.detach().flatten(1)
    expected = [share_lost(rows, weight, of_unit, ridge) for of_unit in columns]
    scores = reconstruction(smooth, group, "all", matrices, ridge)
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == group.size


def test_reconstruction_of_the_stream_adds_up_its_readers(network, images, batches):
    group = network.channel_groups()["stage4.stream"]
    rows = {}
    handles = [
        network.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: rows.update({path: args[0].detach()})
        )
        for path in group.consumers
    ]
    with torch.no_grad():
        network(images[:5])
    for handle in handles:
        handle.remove()
    shares = []
    for path in group.consumers:
        x = rows[path]
        x = x.flatten(0, 1) if path == "head.fc" else patches(x, 1, 0)
        weight = network.get_submodule(path).weight.detach().flatten(1)
        shares.append([share_lost(x, weight, [unit], 1e-3) for unit in range(group.size)])
    expected = torch.tensor(shares, dtype=torch.float64)
    scores = score(reconstruction, grams, network, group, batches)
    assert torch.allclose(scores, expected.sum(0), rtol=1e-6, atol=1e-12)
    first = score(reconstruction, grams, network, group, batches, "first")
    assert torch.allclose(first, expected[0], rtol=1e-6, atol=1e-12)


def test_reconstruction_of_attention_maps_against_least_squares(network, images, batches):
    group = network.channel_groups()[f"{ATTENTION}.query_key"]
    query, key = (
        recorded(network, f"{ATTENTION}.{name}_neuron", images[:5]).flatten(0, 1).flatten(2)
        for name in ("query", "key")
    )
    # what channel c adds to its head's attention maps, of all steps and images, pixel by pixel
    products = torch.einsum("acm,acn->camn", query, key).flatten(1)
    ridge, per_head = 1e-3, group.size // group.heads
    heads = products.split(per_head)
    # one λ for all heads
    damping = ridge * products.square().sum(1).mean()
    energy = sum(head.sum(0).square().sum() for head in heads)
    expected = []
    for head in heads:
        for unit in range(per_head):
            rest = torch.cat([head[:unit], head[unit + 1 :]]).T
            a = torch.cat([rest, damping.sqrt() * torch.eye(per_head - 1, dtype=rest.dtype)])
            b = torch.cat([head[unit], torch.zeros(per_head - 1, dtype=rest.dtype)])[:, None]
            residual = b - a @ torch.linalg.lstsq(a, b).solution
            expected.append((residual.square().sum() / energy).item())
    assert max(expected) > 1e-3
    scores = score(reconstruction, grams, network, group, batches)
    assert scores.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


class Summed(nn.Module):
    """Channels whose spikes are only summed, in two heads: as a query of QKFormer."""

    def __init__(self):
        super().__init__()
        self.query = nn.Conv2d(2, 6, 1).double()
        nn.init.normal_(self.query.weight, std=3.0)
        self.neuron = LIF()

    def forward(self, x):
        reset_state(self)
        spikes = self.neuron(self.query(x)[None])
        return spikes.unflatten(2, (2, 3)).sum(3).flatten(3).mean(3)[0]

    group = ChannelGroup("q", "query_key", 6, ("query",), heads=2, neurons=("neuron",))


def test_reconstruction_of_channels_that_are_only_summed(smooth_batches):
    torch.manual_seed(0)
    network, group = Summed(), Summed.group
    with torch.no_grad():
        spikes = network.neuron(network.query(torch.cat([x for x, _ in smooth_batches]))[None])[0]
    columns = spikes.transpose(0, 1).flatten(1)
    damping = 1e-3 * columns.square().sum(1).mean()
    energy = columns[:3].sum(0).square().sum() + columns[3:].sum(0).square().sum()
    expected = []
    for unit in range(6):
        others = [c for c in range(unit // 3 * 3, unit // 3 * 3 + 3) if c != unit]
        a = torch.cat([columns[others].T, damping.sqrt() * torch.eye(2, dtype=columns.dtype)])
        b = torch.cat([columns[unit], torch.zeros(2, dtype=columns.dtype)])[:, None]
        residual = b - a @ torch.linalg.lstsq(a, b).solution
        expected.append((residual.square().sum() / energy).item())
    assert min(expected) > 1e-4
    scores = score(reconstruction, grams, network, group, smooth_batches)
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


def test_silent_and_repeated_channels_are_worth_nothing(network, batches):
    group = network.channel_groups()["stage3.block1.mlp.hidden"]
    mlp = network.stage3.block1.mlp
    with torch.no_grad():
        # channel 3 never fires; 7 and 8 fire alike
        mlp.bn1.weight[3], mlp.bn1.bias[3] = 0.0, -1.0
        mlp.conv1.weight[8] = mlp.conv1.weight[7]
        for tensor in (mlp.bn1.weight, mlp.bn1.bias, mlp.bn1.running_mean, mlp.bn1.running_var):
            tensor[8] = tensor[7]
    assert score(firing_rate, activity, network, group, batches)[3] == 0.0
    assert score(spike_rank, singular_values, network, group, batches)[3] == 0.0
    lost = score(reconstruction, grams, network, group, batches)
    assert abs(lost[3]) < 1e-12
    others = [unit for unit in range(group.size) if unit not in (3, 7, 8)]
    assert max(lost[7], lost[8]) < 0.1 * lost[others].min()


def test_a_network_that_reads_nothing_scores_zero():
    group = ChannelGroup("g", "hidden", 2, ("read",), ("read",))
    batches = [(torch.zeros(2, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 1]))]
    for importance, statistic in (
        (firing_rate, activity),
        (spike_rank, singular_values),
        (reconstruction, grams),
    ):
        assert score(importance, statistic, Echo(), group, batches).tolist() == [0.0, 0.0]
