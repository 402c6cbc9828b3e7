"""Statistics of calibration images: what they are sums of, and that the network stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plans import logits, same_bits
from torch import nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.models import create_model
from psvit.neurons import LIF, IntegerLIF
from psvit.pruning import gram as gram_module
from psvit.pruning.calibration import activity, gradients, in_scope, readers, singular_values
from psvit.pruning.gram import Gram, grams, input_grams, input_rows

STATISTICS = (gradients, activity, singular_values, grams)


def numbers(statistic):
    """Everything that a statistic holds, by group, as tensors."""
    found = {}
    for name, value in statistic.items():
        if isinstance(value, torch.Tensor):
            found[name] = [value]
        elif isinstance(value, list):
            found[name] = [each.matrix for each in value]
        else:
            found[name] = [value.total, value.squares]
    return found


@pytest.fixture
def batches(images, labels):
    return list(zip(images[:4].split(2), labels[:4].split(2), strict=True))


def state(network):
    return (
        {name: id(parameter) for name, parameter in network.named_parameters()},
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in network.parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()],
    )


def at_rest(network):
    neurons = [module for module in network.modules() if isinstance(module, (LIF, IntegerLIF))]
    return neurons and all(neuron.v == 0.0 for neuron in neurons)


@pytest.fixture
def used(network):
    """In training, partly frozen, with gradients of a step before."""
    network.train()
    network.stage2.eval()
    network.stage1a.requires_grad_(False)
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, number)
    return network


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_network_is_left_as_it_was(used, batches, statistic):
    before, weights = state(used), copy.deepcopy(used.state_dict())
    found = statistic(used, used.channel_groups().values(), batches, torch.device("cpu"))
    assert found.keys() == used.channel_groups().keys()
    assert state(used) == before and same_bits(used.state_dict(), weights) and at_rest(used)
    for number, parameter in enumerate(used.parameters()):
        assert torch.equal(parameter.grad, torch.full_like(parameter, number))
    # and can be trained
    used(batches[0][0]).sum().backward()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_network_is_left_as_it_was_after_an_exception(used, batches, statistic):
    def interrupted():
        yield batches[0]
        raise KeyboardInterrupt

    before, weights = state(used), copy.deepcopy(used.state_dict())
    with pytest.raises(KeyboardInterrupt):
        statistic(used, used.channel_groups().values(), interrupted())
    assert state(used) == before and same_bits(used.state_dict(), weights) and at_rest(used)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_neither_the_batches_nor_what_was_before_matter(
    network, images, labels, batches, statistic
):
    groups = list(network.channel_groups().values())
    at_once = numbers(statistic(network, groups, [(images[:4], labels[:4])]))
    # potentials of other images, and of another number of them
    logits(network, images[5:8])
    network.train()
    in_two = numbers(statistic(network, groups, batches))
    for name, tensors in at_once.items():
        for one, other in zip(tensors, in_two[name], strict=True):
            assert one.dtype == torch.float64 and one.abs().max() > 0
            assert torch.allclose(one, other, rtol=1e-8, atol=1e-12), name


def test_frozen_weights_have_the_same_gradients(network, batches):
    groups = list(network.channel_groups().values())
    trainable = numbers(gradients(network, groups, batches))
    network.requires_grad_(False)
    frozen = numbers(gradients(network, groups, batches))
    for name, tensors in frozen.items():
        assert all(map(torch.equal, tensors, trainable[name])), name


FAMILIES = {
    "e_spikeformer": {"embed_dims": [8, 16, 16, 16], "depth": [1] * 5, "strides": [2, 2, 2, 1, 1]},
    "sdt_v1": {"embed_dims": 16, "depth": 1, "strides": [1, 1, 2, 2]},
    "spikformer": {"embed_dims": 16, "depth": 1, "strides": [1, 1, 2, 2]},
    "qkformer": {"embed_dims": 32, "depth": 4, "strides": [1, 2, 2, 1]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_of_every_family_has_statistics(family, images, labels):
    torch.manual_seed(0)
    network = create_model(
        family,
        **FAMILIES[family],
        num_heads=2,
        image_size=32,
        num_classes=5,
        in_channels=3,
        time_steps=2,
    ).eval()
    groups = network.channel_groups()
    batches = [(images[:2].float(), labels[:2])]
    for statistic in STATISTICS:
        for tensors in numbers(statistic(network, groups.values(), batches)).values():
            assert all(tensor.isfinite().all() for tensor in tensors)
    # what the family's neurons fire is what its groups without consumers are read as
    for group in groups.values():
        assert bool(group.consumers) != bool(group.neurons), group.name
        for path in group.neurons:
            assert isinstance(network.get_submodule(path), (LIF, IntegerLIF))


# --- Gram matrices


LAYERS = {
    "pointwise": nn.Conv2d(3, 4, 1),
    "strided pointwise": nn.Conv2d(3, 4, 1, stride=2),
    "padded pointwise": nn.Conv2d(3, 4, 1, padding=1),
    "3x3": nn.Conv2d(3, 4, 3, padding=1),
    "strided, dilated, not square": nn.Conv2d(
        3, 4, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)
    ),
    "padded by name": nn.Conv2d(3, 4, 3, padding="same"),
    "padded by name, unevenly": nn.Conv2d(3, 4, (2, 4), padding="same", dilation=(3, 1)),
    "not padded, by name": nn.Conv2d(3, 4, 3, padding="valid", stride=2),
    "wrapped around": nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular", stride=2),
    "mirrored pointwise": nn.Conv2d(3, 4, 1, padding=1, padding_mode="reflect"),
    "repeated, by name": nn.Conv2d(3, 4, 3, padding="same", padding_mode="replicate"),
    "linear": nn.Linear(7, 4),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_input_rows_times_the_weight_is_the_output(layer):
    torch.manual_seed(0)
    layer, x = copy.deepcopy(layer).double(), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x) - (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])
        rows = input_rows(layer, x)
        currents = rows @ layer.weight.flatten(1).T
    expected = y if isinstance(layer, nn.Linear) else y.movedim(1, -1)
    assert torch.allclose(currents, expected.reshape(-1, 4), atol=1e-12)
    # steps may stand before the images
    assert torch.equal(input_rows(layer, x[:, None]), rows)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv1d(4, 4, 1),
        nn.BatchNorm2d(4),
    ],
)
def test_layers_without_input_rows(layer):
    with pytest.raises(TypeError, match="no input rows"):
        input_rows(layer, torch.zeros(1, 4, 5, 5))


@pytest.mark.parametrize(
    "path",
    [
        "stage1a.downsample.conv",
        "stage2.block1.mlp.conv2",
        "stage4.block1.attn.projection.conv2",
        "head.fc",
    ],
)
def test_gram_is_a_sum_over_rows(network, images, batches, path):
    seen, outputs = [], []
    handles = [
        network.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        network.get_submodule(path).register_forward_hook(lambda *args: outputs.append(args[2])),
    ]
    logits(network, images[:4])
    for handle in handles:
        handle.remove()
    module, x = network.get_submodule(path), seen[0]
    found = input_grams(network, [path], batches)[path]
    expected = torch.zeros_like(found.matrix)
    if isinstance(module, nn.Linear):
        columns = [x[..., channel] for channel in range(x.shape[-1])]
    else:
        # a convolution with a 1 at one patch position reads one column
        size = module.weight[0].numel()
        pick = torch.eye(size, dtype=x.dtype).unflatten(1, module.weight.shape[1:])
        columns = F.conv2d(x, pick, None, module.stride, module.padding).unbind(1)
    for i, one in enumerate(columns):
        for j in range(max(0, i - 20), i + 1):
            expected[i, j] = expected[j, i] = (one * columns[j]).sum()
            assert torch.isclose(found.matrix[i, j], expected[i, j], rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.matrix, found.matrix.T, rtol=1e-12)
    assert found.matrix.dtype == torch.float64 and found.matrix.abs().max() > 0
    assert found.rows == outputs[0].numel() // module.weight.shape[0]


def test_a_gram_matrix_does_not_depend_on_the_parts(monkeypatch):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 2, 3).double(), torch.randn(7, 3, 5, 5, dtype=torch.float64)
    whole, parts = Gram(), Gram()
    whole.add(layer, x)
    sizes = []
    monkeypatch.setattr(gram_module, "_AT_ONCE", 2 * 3 * 5 * 5 * 9)
    monkeypatch.setattr(
        gram_module, "input_rows", lambda m, some: sizes.append(len(some)) or input_rows(m, some)
    )
    parts.add(layer, x)
    assert sizes == [2, 2, 2, 1]
    assert whole.rows == parts.rows == 7 * 9
    assert torch.allclose(whole.matrix, parts.matrix, rtol=1e-12)


def test_readers():
    reads = ChannelGroup("a", "hidden", 4, ("p",), ("c1", "c2"))
    fires = ChannelGroup("b", "query_key", 4, ("p",), neurons=("q", "k"))
    assert readers(reads) == ("c1", "c2") and readers(reads, "first") == ("c1",)
    assert readers(fires) == ("q", "k") and readers(fires, "first") == ("q",)
    assert in_scope([], "first") == []
    with pytest.raises(UserError, match="c: .* names neither consumers nor neurons"):
        readers(ChannelGroup("c", "hidden", 4, ("p",)))
