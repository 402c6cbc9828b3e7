"""Masked equals pruned, in float64 at T > 1, on networks whose every group matters."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FAMILIES, SMALL, alive, images, logits, random_plan, random_units

from psvit.channels import KINDS, Plan
from psvit.pruning.surgery import masked, prune, pruned_parameters

EXACT = 1e-9


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    network = alive(request.param)
    network.family = request.param
    return network


def compare(network, plan, x):
    """Logits masked and pruned; the pruned network's parameters are those foretold."""
    with masked(network, plan):
        by_mask = logits(network, x)
    pruned = prune(network, plan)
    assert sum(p.numel() for p in pruned.parameters()) == pruned_parameters(network, plan)
    by_surgery = logits(pruned, x)
    assert (by_mask - by_surgery).abs().max() <= EXACT
    return by_surgery


def test_each_group_masked_equals_pruned_and_matters(network):
    x, groups = images(batch=6), network.channel_groups()
    whole = logits(network, x)
    for group in groups.values():
        plan = random_plan([group], 0.5)
        assert len(plan[group.name]) < group.size
        cut = compare(network, plan, x)
        assert (cut - whole).abs().max() > 1e-6, f"{group.name} has no effect: a dead network"


def test_random_plans_over_all_groups_at_once(network):
    x, groups = images(batch=2), network.channel_groups()
    ratios = st.fixed_dictionaries(
        {name: st.sampled_from([0.0, 0.25, 0.5, 0.8]) for name in groups}
    )

    @settings(max_examples=6, derandomize=True, deadline=None, database=None)
    @given(ratios=ratios, seed=st.integers(0, 1000))
    def check(ratios, seed):
        plan = Plan(
            {
                name: random_units(groups[name], ratio, seed)
                for name, ratio in ratios.items()
                if ratio
            }
        )
        compare(network, plan, x)

    check()


def test_a_pruned_network_can_be_pruned_again(network):
    x = images(batch=2)
    once = prune(network, random_plan(network.channel_groups().values(), 0.5))
    groups = once.channel_groups()
    assert set(groups) == set(network.channel_groups())
    compare(once, random_plan([g for g in groups.values() if g.size > g.heads], 0.3), x)


def test_nothing_cut_changes_no_bit(network):
    x, groups = images(batch=2), network.channel_groups()
    before = copy.deepcopy(network.state_dict())
    whole = logits(network, x)
    everything = Plan({name: range(group.size) for name, group in groups.items()})
    for plan in (Plan(), everything):
        pruned = prune(network, plan)
        assert torch.equal(logits(pruned, x), whole)
        for name, tensor in pruned.state_dict().items():
            assert torch.equal(tensor, before[name])
    # masking restores what it zeroed
    with masked(network, random_plan(groups.values(), 0.5)):
        assert not torch.equal(logits(network, x), whole)
    assert torch.equal(logits(network, x), whole)


def test_pruning_never_changes_the_scale_of_attention(network):
    pruned = prune(network, random_plan(network.channel_groups().values(), 0.5))
    scales = {name: m.scale for name, m in network.named_modules() if hasattr(m, "scale")}
    assert {name: m.scale for name, m in pruned.named_modules() if hasattr(m, "scale")} == scales
    # and the heads that are left are as many as the plan says
    for name, module in pruned.named_modules():
        if hasattr(module, "num_heads"):
            assert module.num_heads == 2, name


@pytest.mark.parametrize("name", SMALL)
def test_groups_have_readable_names_and_every_kind(name):
    groups = alive(name).channel_groups()
    kinds = {group.kind for group in groups.values()}
    # in Spike-driven Transformer V1 query and key are cut with the value
    assert kinds == set(KINDS) - ({"query_key"} if name == "sdt_v1" else set())
    for name in groups:
        assert name.split(".")[0].startswith(("stage", "stem"))


def test_names_and_sizes_of_meta_spikeformer():
    groups = alive("meta_spikeformer").channel_groups()
    expected = {
        "stage3.block2.attn.query_key": ("query_key", 24, 4),
        "stage3.block2.attn.value": ("value", 24, 4),
        "stage3.block2.attn.head": ("head", 4, 1),
        "stage3.block2.attn.key.hidden": ("hidden", 24, 1),
        "stage3.block2.mlp.hidden": ("hidden", 48, 1),
        "stage1a.block1.sep_conv.hidden": ("hidden", 8, 1),
        "stage1a.stream": ("stream", 4, 1),
        "stage4.stream": ("stream", 32, 1),
    }
    for name, facts in expected.items():
        assert (groups[name].kind, groups[name].size, groups[name].heads) == facts
    assert sum(group.kind == "stream" for group in groups.values()) == 5


def test_stem_channels_are_groups():
    groups = alive("spikformer").channel_groups()
    assert [groups[f"stem.conv{n}.hidden"].size for n in (1, 2, 3)] == [4, 8, 16]
    # the stream begins with the stem's last convolution and ends at the classifier
    stream = groups["stage1.stream"]
    assert "stem.conv4.conv" in stream.producers and "head.fc" in stream.consumers
    groups = alive("qkformer").channel_groups()
    assert groups["stem.hidden"].size == 4 and groups["stage2.embed.hidden"].size == 16


def test_a_stream_takes_everything_of_its_width_along():
    network = alive("spikformer")
    pruned = prune(network, Plan({"stage1.stream": range(8)}))
    for name, tensor in pruned.state_dict().items():
        if ".norm" in name or "projection" in name or name.startswith("stem.position"):
            assert tensor.dim() == 0 or tensor.shape[0] == 8, name
