"""Firing rates computed by hand, and neuron layers matched with the groups that cut them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from psvit.channels import ChannelGroup, Plan
from psvit.measure.firing import SEPARATOR, diagnose, measure_firing, neuron_groups
from psvit.models.ports import Ports
from psvit.neurons import LIF, IntegerLIF, reset_state
from psvit.pruning import prune

sys.path.append(str(Path(__file__).parents[1] / "models"))
from networks import FAMILIES, alive, images, logits, random_plan, random_units  # noqa: E402

sys.path.append(str(Path(__file__).parents[1] / "pruning"))
from own import Own  # noqa: E402

CPU = torch.device("cpu")
STEPS = 4


class Tokens(nn.Module):
    """An MLP of linear layers over 8 x 8 tokens ``[T, B, N, C]``."""

    def __init__(self, normed):
        super().__init__()
        self.neuron1, self.fc1 = LIF(), nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12) if normed else nn.Identity()
        self.neuron2, self.fc2 = LIF(), nn.Linear(12, 8)

    def forward(self, x):
        tokens = x.flatten(3).transpose(2, 3).contiguous()
        hidden = self.norm(self.fc1(self.neuron1(tokens)))
        tokens = tokens + self.fc2(self.neuron2(hidden))
        return tokens.transpose(2, 3).unflatten(3, x.shape[3:])

    def channel_groups(self):
        hidden = ChannelGroup("hidden", "hidden", self.fc1.out_features, ("fc1",), ("fc2",))
        # a LayerNorm's channels cannot go one by one
        return [] if isinstance(self.norm, nn.LayerNorm) else [hidden]

    def residual_ports(self):
        return Ports(("fc1",), ("fc2",))


class Neurons(nn.Module):
    """Nothing but a neuron layer: images ``[B, C, 1, 1]`` are its currents at every step."""

    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x):
        reset_state(self)
        return self.neuron(x.expand(STEPS, *x.shape))


def batches(*currents):
    """Batches of images ``[B, C, 1, 1]`` from lists of rows of currents."""
    return [(torch.tensor(rows)[..., None, None], torch.zeros(len(rows))) for rows in currents]


def by_layer(frame):
    return frame.set_index("layer")


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    return alive(request.param)


def test_rates_of_two_neurons_are_those_computed_by_hand():
    # H = V + (X - V) / 2: a current of 2 fires at every step, 1.5 at every second one, 0.9 never
    three = [[2.0, 1.5], [2.0, 0.9], [2.0, 0.9]]
    one = [[2.0, 2.0]]
    (row,) = measure_firing(Neurons(LIF()), batches(three, one), CPU).to_dict("records")
    assert row == {
        "layer": "neuron",
        "channels": 2,
        # an image counts the same in a batch of three and alone
        "rate": (1.0 + (0.5 + 0 + 0 + 1.0) / 4) / 2,
        "silent": 0.0,
        "saturated": 0.5,
    }
    (row,) = measure_firing(Neurons(LIF()), batches(three[1:]), CPU).to_dict("records")
    assert (row["rate"], row["silent"], row["saturated"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("norm", [None, 1, 2])
def test_an_integer_neuron_s_rate_is_a_share_of_its_largest_count(norm):
    # V carries nothing over: the currents are whole numbers, or above D for good
    currents = batches([[4.0, 1.0, 0.0, 2.0, 9.0], [4.0, 3.0, 0.0, 0.0, 9.0]])
    (row,) = measure_firing(Neurons(IntegerLIF(4, norm)), currents, CPU).to_dict("records")
    assert row["rate"] == pytest.approx((1 + 0.5 + 0 + 0.25 + 1) / 5)
    assert (row["silent"], row["saturated"]) == (0.2, 0.4)


@pytest.mark.parametrize("normed", [False, True])
def test_the_channels_of_linear_layers_come_last(normed):
    torch.manual_seed(0)
    network = Own(Tokens(normed)).eval()
    block = network.stage1[0]
    silenced = block.norm if normed else block.fc1
    with torch.no_grad():
        silenced.bias[:] = torch.tensor([5.0] * 6 + [-50.0] * 6)
    images = torch.randn(4, 3, 32, 32)
    # two batches: the second is read as the first was after all
    rows = by_layer(measure_firing(network, [(images[:3], None), (images[3:], None)], CPU))
    assert rows.loc["stage1.0.neuron1", "channels"] == 8
    hidden = rows.loc["stage1.0.neuron2"]
    assert (hidden["channels"], hidden["silent"], hidden["rate"]) == (12, 0.5, 0.5)
    # by hand, channel by channel
    emitted = []
    block.neuron1.register_forward_hook(lambda _module, _inputs, x: emitted.append(x))
    with torch.no_grad():
        network(images)
    (spikes,) = emitted
    assert rows.loc["stage1.0.neuron1", "rate"] == pytest.approx(float(spikes.mean()))
    assert rows.loc["stage1.0.neuron1", "silent"] == float((spikes.sum((0, 1, 2)) == 0).sum() / 8)
    if normed:
        return
    groups = neuron_groups(network, images[:1])
    assert groups["stage1.0.neuron2"] == ["stage1.0.hidden"]
    small = prune(network, Plan({"stage1.0.hidden": range(6)}))
    row = by_layer(diagnose(network, small, [(images, None)], CPU)).loc["stage1.0.neuron2"]
    assert (row["channels_base"], row["channels"], row["silent"]) == (12, 6, 0.0)


def test_a_layer_silenced_by_its_batch_norm_is_reported_silent(network):
    pruned = prune(network, Plan())
    norm = (
        pruned.stage1.block1.mlp.bn1 if hasattr(pruned, "stage1") else pruned.stage3.block1.mlp.bn1
    )
    path = next(name for name, module in pruned.named_modules() if module is norm)
    norm.bias.data[:] = -1e4
    rows = by_layer(diagnose(network, pruned, [(images(), None)], CPU))
    hidden = rows[rows["group"] == path.replace("bn1", "hidden")]
    assert len(hidden) == 1
    assert hidden["silent"].item() == 1 and hidden["rate"].item() == 0
    assert hidden["silent_base"].item() < 0.5 and hidden["rate_base"].item() > 0.05
    assert hidden["drift"].item() == -hidden["rate_base"].item()
    # what runs before it fires as before
    earlier = rows.iloc[: rows.index.get_loc(hidden.index[0])]
    assert len(earlier) > 3 and (earlier["drift"] == 0).all()


def test_a_network_has_not_drifted_from_itself(network):
    rows = diagnose(network, network, [(images(), None)], CPU)
    neurons = [m for m in network.modules() if isinstance(m, LIF | IntegerLIF)]
    assert len(rows) == len(neurons)
    assert (rows["drift"] == 0).all() and rows["rate"].between(0, 1).all()
    for measured in ("channels", "silent", "saturated"):
        assert (rows[measured] == rows[f"{measured}_base"]).all()
    # no group's neuron is in another segment than its block
    assert all(layer.startswith(s) for layer, s in zip(rows["layer"], rows["segment"], strict=True))


def test_measuring_leaves_no_trace(network):
    x = images()
    before = logits(network, x)
    diagnose(network, network, [(x, None)], CPU)
    assert torch.equal(logits(network, x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_cut_changes_the_layers_of_its_group_and_no_others(network):
    groups = network.channel_groups()
    # a frame of one step is enough to count channels
    frame = images(1).unsqueeze(1)
    found = neuron_groups(network, frame)
    assert {name for names in found.values() for name in names} <= set(groups)
    whole = by_layer(measure_firing(network, [(frame, None)], CPU))["channels"]
    for name, group in groups.items():
        kept = random_units(group, 0.5, seed=0)
        assert len(kept) < group.size
        pruned = prune(network, Plan({name: kept}))
        cut = by_layer(measure_firing(pruned, [(frame, None)], CPU))["channels"]
        changed = cut.index[cut != whole]
        assert sorted(changed) == sorted(layer for layer, names in found.items() if name in names)
        assert (cut[changed] * group.size == whole[changed] * len(kept)).all()
        # only the re-parameterised convolutions have channels that no neuron sees
        assert (
            len(changed)
            or name.endswith(("query.hidden", "key.hidden", "value.hidden"))
            or (name.endswith("projection.hidden"))
        )


def test_the_groups_of_a_pruned_network_are_those_of_the_base(network):
    pruned = prune(network, random_plan(network.channel_groups().values(), 0.5))
    x = images(2)
    assert neuron_groups(pruned, x[:1]) == neuron_groups(network, x[:1])
    rows = by_layer(diagnose(network, pruned, [(x, None)], CPU))
    assert (rows["channels"] < rows["channels_base"]).all()
    assert all(rows["group"])


def test_heads_and_samples_are_not_taken_for_channels():
    network = alive("qkformer")
    token, self_attention = network.stage1.block1.attn, network.stage3.block2.attn
    # the queries of head 0, the values of head 0, and a quarter of the projection
    token.query.bn.bias.data[:2] = -1e4
    self_attention.value.bn.bias.data[:8] = -1e4
    self_attention.projection.bn.bias.data[:8] = -1e4
    rows = by_layer(measure_firing(network, [(images(6), None)], CPU))
    assert rows.loc["stage1.block1.attn.attention_neuron", "channels"] == 4
    assert rows.loc["stage1.block1.attn.attention_neuron", "silent"] == 1 / 4
    for layer in ("attention_neuron", "output_neuron.neuron"):
        row = rows.loc[f"stage3.block2.attn.{layer}"]
        assert (row["channels"], row["silent"]) == (32, 1 / 4)


def test_event_frames(network):
    # three steps of three channels, seen as frames
    frames = images(2).unsqueeze(1).repeat(1, network.time_steps, 1, 1, 1)
    shown, seen = (diagnose(network, network, [(x, None)], CPU) for x in (images(2), frames))
    assert shown["group"].equals(seen["group"])
    assert (shown["rate"] - seen["rate"]).abs().max() < 1e-12


def test_groups_that_share_a_layer_are_all_named():
    network = alive("sdt_v1")
    rows = by_layer(diagnose(network, network, [(images(1), None)], CPU))
    attention = "stage1.block1.attn"
    names = rows.loc[f"{attention}.key_neuron", "group"].split(SEPARATOR)
    assert names == [f"{attention}.value", f"{attention}.head"]
    assert rows.loc["head.neuron", "group"] == "stage1.stream"


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no batch"):
        measure_firing(Neurons(LIF()), [], CPU)
