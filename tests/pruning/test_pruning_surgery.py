"""Masked equals pruned, and neither touches what it should not."""

import copy
import random

import pytest
import torch
from own import QueryBlock, alive
from plans import logits, random_plan, random_units, same_bits
from spikingjelly.activation_based import neuron
from torch import nn

from psvit.channels import KINDS, Plan
from psvit.errors import UserError
from psvit.inference import optimize_for_inference
from psvit.models.blocks import MLP, Downsample
from psvit.models.ports import Ports
from psvit.pruning import masked, prune, pruned_parameters
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import ParameterCounter, compose, expand_units

EXACT = 1e-9


def both_ways(network, plan, x):
    """Logits masked and pruned, which must be equal."""
    with masked(network, plan):
        by_mask = logits(network, x)
    by_surgery = logits(prune(network, plan), x)
    assert (by_mask - by_surgery).abs().max() <= EXACT
    return by_mask


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_alone_masked_equals_pruned(network, images, kind):
    x = images[:3]
    whole = logits(network, x)
    groups = [group for group in network.channel_groups().values() if group.kind == kind]
    assert groups
    for group in groups:
        for ratio in (0.3, 0.7):
            cut = both_ways(network, random_plan([group], ratio), x)
            assert (cut - whole).abs().max() > 1e-6, f"{group.name} has no effect: a dead network"


@pytest.mark.parametrize("seed", range(8))
def test_plans_over_all_groups_masked_equal_pruned(network, images, seed):
    chooser = random.Random(seed)
    plan = Plan(
        {
            name: random_units(group, chooser.choice([0.0, 0.2, 0.5, 0.8]), seed)
            for name, group in network.channel_groups().items()
            if chooser.random() < 0.8
        }
    )
    cut = both_ways(network, plan, images[:3])
    assert (cut - logits(network, images[:3])).abs().max() > 1e-6


def test_a_plan_of_heads_and_of_channels_inside_them(network, images):
    # the head that goes takes the channels along that value and query_key would have kept
    attention = "stage3.block1.attn"
    groups = network.channel_groups()
    plan = Plan(
        {
            f"{attention}.head": [0, 2],
            f"{attention}.value": random_units(groups[f"{attention}.value"], 0.5),
            f"{attention}.query_key": random_units(groups[f"{attention}.query_key"], 0.25),
        }
    )
    both_ways(network, plan, images[:3])
    pruned = prune(network, plan).get_submodule(attention)
    assert pruned.num_heads == 2
    # 2 of 4 heads, of each 4 of 8 values and 6 of 8 queries and keys
    assert [getattr(pruned, name).conv2.out_channels for name in pruned.inputs] == [12, 12, 8]
    assert pruned.projection.conv1.in_channels == 8


def test_the_channels_left_are_the_channels_kept(network):
    kept = [1, 2, 7, 11]
    pruned = prune(network, Plan({"stage1a.block1.mlp.hidden": kept}))
    before, after = network.stage1a.block1.mlp, pruned.stage1a.block1.mlp
    assert torch.equal(after.conv1.weight, before.conv1.weight[kept])
    assert torch.equal(after.conv2.weight, before.conv2.weight[:, kept])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(after.bn1, name), getattr(before.bn1, name)[kept])
        assert torch.equal(getattr(after.bn2, name), getattr(before.bn2, name))


def test_units_stand_for_runs_of_channels():
    assert expand_units([0, 2], 4, 12) == [0, 1, 2, 6, 7, 8]
    assert expand_units((3, 1), 4, 4) == [3, 1]


def test_modules_say_what_their_tensors_are(network):
    pruned = prune(network, random_plan(network.channel_groups().values(), 0.5))
    narrower = 0
    for path, module in pruned.named_modules():
        before = network.get_submodule(path)
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (
                module.out_channels,
                module.in_channels // module.groups,
            ), path
            assert module.bias is None or module.bias.shape == (module.out_channels,), path
            # depthwise stays depthwise, and nothing else becomes it
            assert (module.groups == 1) == (before.groups == 1), path
            narrower += module.out_channels < before.out_channels
        elif isinstance(module, nn.BatchNorm2d):
            tensors = module.weight, module.bias, module.running_mean, module.running_var
            assert {len(tensor) for tensor in tensors} == {module.num_features}, path
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), path
    # every convolution lost outputs: hidden, query_key, value or stream
    assert narrower == sum(isinstance(module, nn.Conv2d) for module in pruned.modules())
    assert pruned.head.fc.out_features == network.head.fc.out_features


def test_pruned_parameters_counts_what_prune_leaves(network):
    groups = list(network.channel_groups().values())
    plans = [random_plan([group], 0.4) for group in groups]
    plans += [random_plan(groups, ratio) for ratio in (0.1, 0.5, 0.9)] + [Plan()]
    count = ParameterCounter(network)
    for plan in plans:
        left = sum(tensor.numel() for tensor in prune(network, plan).parameters())
        assert pruned_parameters(network, plan) == count(plan) == left, plan


def test_masking_restores_every_bit(network, images):
    before = copy.deepcopy(network.state_dict())
    groups = network.channel_groups().values()
    whole = logits(network, images[:2])
    with masked(network, random_plan(groups, 0.5)) as itself:
        assert itself is network
        assert not same_bits(network.state_dict(), before)
        once = copy.deepcopy(network.state_dict())
        # one inside the other, over the same weights
        with masked(network, random_plan(groups, 0.5, seed=1)):
            assert not same_bits(network.state_dict(), once)
        assert same_bits(network.state_dict(), once)
    assert same_bits(network.state_dict(), before)
    assert torch.equal(logits(network, images[:2]), whole)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_masking_restores_every_bit_after_an_exception(network, error):
    before = copy.deepcopy(network.state_dict())
    with (
        pytest.raises(error),
        masked(network, random_plan(network.channel_groups().values(), 0.5)),
    ):
        assert not same_bits(network.state_dict(), before)
        raise error
    assert same_bits(network.state_dict(), before)


def test_masking_leaves_training_as_it_was(network):
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    versions = {name: id(parameter) for name, parameter in network.named_parameters()}
    with masked(network, random_plan(network.channel_groups().values(), 0.5)):
        pass
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad and id(parameter) == versions[name]
        assert torch.equal(parameter.grad, torch.ones_like(parameter))


def test_nothing_cut_changes_no_bit(network, images):
    before, whole = copy.deepcopy(network.state_dict()), logits(network, images[:2])
    everything = {name: range(group.size) for name, group in network.channel_groups().items()}
    for plan in (Plan(), Plan(everything)):
        pruned = prune(network, plan)
        assert same_bits(pruned.state_dict(), before)
        assert torch.equal(logits(pruned, images[:2]), whole)
        with masked(network, plan):
            assert same_bits(network.state_dict(), before)


def test_the_base_is_untouched_and_shares_nothing(network, images):
    network.stage2.requires_grad_(False)
    before, whole = copy.deepcopy(network.state_dict()), logits(network, images[:2])
    pruned = prune(network, random_plan(network.channel_groups().values(), 0.5))
    with torch.no_grad():
        for tensor in [*pruned.parameters(), *pruned.buffers()]:
            tensor.zero_()
    assert same_bits(network.state_dict(), before)
    assert torch.equal(logits(network, images[:2]), whole)
    for path, parameter in pruned.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad == (not path.startswith("stage2.")), path


def test_a_pruned_network_can_be_pruned_again(network, images):
    once = prune(network, random_plan(network.channel_groups().values(), 0.4))
    groups = once.channel_groups()
    assert groups.keys() == network.channel_groups().keys()
    both_ways(once, random_plan(groups.values(), 0.5), images[:3])


def test_cutting_twice_is_cutting_what_both_cut(network):
    name = "stage3.block1.mlp.hidden"
    twice = prune(prune(network, Plan({name: range(10, 100)})), Plan({name: [0, 5, 89]}))
    at_once = prune(network, Plan({name: [10, 15, 99]}))
    assert same_bits(twice.state_dict(), at_once.state_dict())


def test_a_pruned_network_trains(network, images, labels):
    pruned = prune(network, random_plan(network.channel_groups().values(), 0.5)).train()
    nn.functional.cross_entropy(pruned(images), labels).backward()
    for path, parameter in pruned.named_parameters():
        assert parameter.grad.shape == parameter.shape, path


@pytest.mark.parametrize("apply", [prune, pruned_parameters, lambda n, p: masked(n, p).__enter__()])
@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("stage9.mlp.hidden", [0], "plan=stage9.mlp.hidden: no such channel group"),
        ("stage1a.block1.mlp.hidden", [16], "plan.stage1a.block1.mlp.hidden=16: .*16 channels"),
        ("stage3.block1.attn.value", [0, 1, 8, 16], "plan.stage3.block1.attn.value=.*same number"),
    ],
)
def test_a_plan_of_another_network(network, apply, name, kept, message):
    before = copy.deepcopy(network.state_dict())
    # a group that fits comes first: nothing may be cut before all is checked
    plan = Plan({"stage1b.block1.mlp.hidden": [0], name: kept})
    with pytest.raises(UserError, match=message):
        apply(network, plan)
    assert same_bits(network.state_dict(), before)


# --- networks of one's own


def test_what_cannot_be_silenced_is_told():
    network = alive(QueryBlock(8, affine=False))
    (name,) = [name for name in network.channel_groups() if name.endswith("query")]
    with (
        pytest.raises(UserError, match=r"query\.silenced=stage1\.0\.query_bn: .*with a weight"),
        masked(network, Plan({name: range(4)})),
    ):
        pass
    # nothing is removed: nothing need be silenced
    with masked(network, Plan({name: range(8)})):
        pass


class BatchNormFirst(Downsample):
    def residual_ports(self):
        return Ports(writes=("bn", "conv"), residual=False)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("folded", [True, False])
def test_a_batch_norm_named_first_may_have_no_weight(affine, folded, images):
    stem = BatchNormFirst(3, 8, kernel_size=3, stride=4)
    stem.bn = nn.BatchNorm2d(8, affine=affine)
    whole = alive(MLP(8, 12), stem=stem)
    network = optimize_for_inference(whole) if folded else whole
    assert folded == isinstance(network.stem.bn, nn.Identity)
    kept = [1, 2, 3, 6, 7]
    plan = Plan({"stage1.stream": kept})
    both_ways(network, plan, images[:3])
    pruned = prune(network, plan)
    assert torch.equal(pruned.stem.conv.weight, network.stem.conv.weight[kept])
    if not folded:
        assert torch.equal(pruned.stem.bn.running_var, network.stem.bn.running_var[kept])
        assert pruned.stem.bn.num_features == 5
    assert pruned_parameters(network, plan) == sum(p.numel() for p in pruned.parameters())
    then = Ranking(pruned, "l2", kinds=["stream"]).plan({"stage1.stream": 2})
    left = [kept[unit] for unit in then["stage1.stream"]]
    assert compose(network, plan, then) == {"stage1.stream": tuple(left)}


def test_a_network_can_be_cut_behind_a_training_step(images):
    network = alive(MLP(8, 12, neuron=lambda: neuron.LIFNode(step_mode="m"))).train()
    network(images).sum().backward()
    kept = [0, 1]
    pruned = prune(network, Plan({"stage1.0.hidden": kept}))
    assert torch.equal(pruned.stage1[0].conv1.weight, network.stage1[0].conv1.weight[kept])
