"""What runs faster gives the same logits: whole, pruned, and masked by every group."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from psvit.channels import Plan
from psvit.inference import Convolution, optimize_for_inference
from psvit.models import create_model
from psvit.models.layers import RepConv
from psvit.pruning import masked, prune

PYRAMID = {"embed_dims": [8, 8, 16, 16], "depth": [1, 1, 1, 1, 1], "mlp_ratio": 2.0}
COLUMN = {"embed_dims": 16, "depth": 1}
NETWORKS = {
    "meta_spikeformer": {**PYRAMID, "strides": [2, 2, 1, 1, 1], "attention_scale": 0.5},
    "e_spikeformer": {**PYRAMID, "strides": [2, 2, 1, 1, 1]},
    "sdt_v1": {**COLUMN, "strides": [2, 2, 1, 1]},
    "spikformer": {**COLUMN, "strides": [2, 2, 1, 1], "qkv_bias": True},
    "qkformer": {"embed_dims": 32, "depth": 4, "strides": [2, 2, 1, 1]},
}
EXACT = 1e-6


def images(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 16, 16, dtype=torch.float64, generator=generator)


def logits(network):
    with torch.inference_mode():
        return network(images())


def difference(first, second):
    return (logits(first) - logits(second)).abs().max().item()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network of each family in float64 at T > 1 whose batch norms do something, and fire."""
    torch.manual_seed(0)
    network = create_model(
        request.param,
        num_heads=2,
        image_size=16,
        num_classes=5,
        time_steps=2,
        **NETWORKS[request.param],
    ).double()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.6, 1.8)
            nn.init.uniform_(norm.bias, 0.2, 1.4)
            norm.momentum = 0.5
    nn.init.normal_(network.head.fc.weight)
    network.train()
    with torch.no_grad():
        network(images(4))
    return network.eval()


def test_logits_are_the_same_and_no_batch_norm_is_left(network):
    before = copy.deepcopy(network.state_dict())
    fast = optimize_for_inference(network)
    assert difference(fast, network) < EXACT
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert logits(network).std() > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    # as it is, it is optimised a second time
    assert difference(optimize_for_inference(fast), network) < EXACT


def test_every_group_masks_the_optimised_network_too(network):
    fast = optimize_for_inference(network)
    whole, groups = logits(network), network.channel_groups()
    assert groups.keys() == fast.channel_groups().keys()
    told_apart, plans = set(), []
    for group in groups.values():
        # the last half of each head's units goes
        per_head = group.size // group.heads
        plan = Plan({group.name: [u for u in range(group.size) if u % per_head < per_head / 2]})
        plans.append(plan)
        with masked(network, plan), masked(fast, plan):
            masked_logits = logits(fast)
            assert (masked_logits - logits(network)).abs().max() < EXACT, group.name
            if (masked_logits - whole).abs().max() > 1e-3:
                told_apart.add(group.kind)
    assert told_apart == {group.kind for group in groups.values()}
    assert difference(fast, network) < EXACT
    pruned = prune(network, Plan({name: kept for plan in plans for name, kept in plan.items()}))
    assert difference(optimize_for_inference(pruned), pruned) < EXACT


def test_the_border_of_a_repconv_stays():
    torch.manual_seed(0)
    layer = RepConv(4, 6).double()
    for norm in (layer.bn1, layer.bn2, layer.bn3):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2.0)
    layer.eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    fast = optimize_for_inference(layer)
    with torch.no_grad():
        assert (fast(x) - layer(x)).abs().max() < 1e-12
        # a border of zeros behind BN would have been another layer
        assert layer._pad(torch.zeros_like(x))[0, :, 0, 0].abs().min() > 0.1
    assert fast.conv1.bias is None and fast.depthwise.padding == (1, 1)


def test_a_convolution_that_others_read_is_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return y + self.bn(y)

    assert isinstance(optimize_for_inference(Shared()).bn, nn.BatchNorm2d)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (20, 3, 4, 4), (20, 3, 9, 8)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_is_a_matrix_product(shape, order):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 5, 1)).double()
    fast = optimize_for_inference(layer)
    assert (
        isinstance(fast[0], Convolution) and fast.state_dict().keys() == layer.state_dict().keys()
    )
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=order)
    with torch.no_grad():
        found = fast(x)
        assert (found - layer(x)).abs().max() < 1e-12
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_large_pointwise_convolution_has_its_own_way(order, bias):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(64, 72, 1, bias=bias))
    fast = optimize_for_inference(layer)
    x = torch.randn(2, 64, 32, 32).to(memory_format=order)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            found = fast(x)
        assert counter.get_total_flops() == 2 * 2 * 64 * 72 * 32 * 32
        assert (found - layer.double()(x.double())).abs().max() < 1e-5
        # a mask of the weights, as the sensitivity analysis sets it, is seen at once
        fast[0].weight[3] = 0
        assert fast(x)[:, 3].unique().numel() == 1
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"groups": 2}])
def test_other_convolutions_stay(options):
    layer = optimize_for_inference(nn.Sequential(nn.Conv2d(4, 4, 1, **options)))
    assert type(layer[0]) is nn.Conv2d


# of 32 images, above and below the number of multiplications that weights are packed for
PACKED = {
    "3x3": nn.Conv2d(16, 24, 3, padding=1),
    "strided": nn.Conv2d(16, 48, 3, stride=2, padding=1, bias=False),
    "1x1": nn.Conv2d(16, 64, 1),
}
AS_BEFORE = {
    "depthwise": nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "few products": nn.Conv2d(16, 4, 1),
    "same": nn.Conv2d(16, 24, 3, padding="same"),
    "reflected": nn.Conv2d(16, 24, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("kind", [*PACKED, *AS_BEFORE])
def test_packed_weights_are_the_same_layer(kind):
    torch.manual_seed(0)
    layer = nn.Sequential({**PACKED, **AS_BEFORE}[kind])
    fast = optimize_for_inference(layer, packed=True)
    first, second = torch.randn(32, 16, 10, 10), torch.randn(40, 16, 8, 8)

    def same(x):
        return (fast(x) - copy.deepcopy(layer).double()(x.double())).abs().max() < 1e-5

    # with gradients nothing is packed, and nothing is without oneDNN
    assert same(first) and getattr(fast[0], "_ordered", None) is None
    with torch.inference_mode():
        assert same(first) and same(second) and same(first)
        assert (getattr(fast[0], "_ordered", None) is not None) == (kind in PACKED)
        assert fast(first).is_contiguous(memory_format=torch.channels_last)
        # a change of the weights is seen, also by a copy
        layer[0].weight[1] = fast[0].weight[1] = 0
        assert same(first)
        twice = copy.deepcopy(fast)
        twice[0].weight[2] = 0
        assert torch.equal(twice(first)[:, :2], fast(first)[:, :2])
        assert same(first) and twice(first)[:, 2].unique().numel() == 1
    assert fast.state_dict().keys() == layer.state_dict().keys()


def test_a_packed_network_gives_the_same_logits(network):
    single = copy.deepcopy(network).float()
    x = images(40).float()
    with torch.inference_mode():
        expected, found = single(x), optimize_for_inference(single, packed=True)(x)
    # a rounding may flip a spike of an image
    assert ((found - expected).abs().amax(1) < 1e-4).float().mean() > 0.9
    assert difference(optimize_for_inference(network, packed=True), network) < EXACT
