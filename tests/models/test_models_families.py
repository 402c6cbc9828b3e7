"""What every network does with images, frames, state and gradients."""

import copy

import pytest
import torch
from networks import FAMILIES, SMALL, alive, images, logits, small
from torch import nn

from psvit.models import SpikingTransformer, create_model
from psvit.neurons import reset_state


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    return alive(request.param)


def test_an_image_is_its_repetition_as_frames(network):
    x = images()
    frames = x.unsqueeze(1).repeat(1, network.time_steps, 1, 1, 1)
    assert (logits(network, x) - logits(network, frames)).abs().max() <= 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_event_frames_bring_their_own_time(name):
    network = alive(name, in_channels=2)
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(2, 5, 2, 32, 32, dtype=torch.float64, generator=generator)
    forward = logits(network, frames)
    assert forward.shape == (2, 5)
    # neurons remember: the order of the frames matters
    assert (forward - logits(network, frames.flip(1))).abs().max() > 1e-6
    # one frame is one step, whatever time_steps says
    network.time_steps = 7
    one = logits(network, frames[:, :1])
    network.time_steps = 1
    assert torch.equal(one, logits(network, frames[:, 0]))


def test_what_precedes_the_first_neuron_is_computed_once(network):
    convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    seen = []
    handle = convolution.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    logits(network, images(batch=2))
    logits(network, images(batch=2).unsqueeze(1).repeat(1, 3, 1, 1, 1))
    handle.remove()
    assert seen == [2, 6]


def test_no_batch_remembers_the_one_before(network):
    x = images()
    first = logits(network, x)
    logits(network, images(seed=9))
    assert torch.equal(logits(network, x), first)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_do_not_see_each_other(name):
    apart = {"batch_as_time": False} if name == "qkformer" else {}
    network, x = alive(name, **apart), images()
    alone = torch.cat([logits(network, image[None]) for image in x])
    assert (alone - logits(network, x)).abs().max() <= 1e-9


def test_the_released_qkformer_mixes_its_batch():
    network, x = alive("qkformer"), images()
    together = logits(network, x)
    # the first image comes before the others at the first step only
    assert not torch.allclose(together[1:2], logits(network, x[1:2]), atol=1e-6)


def test_any_suffix_of_the_chain_runs_alone(network):
    x = images(batch=2)
    whole = logits(network, x)
    entering = network.encode(x)
    with torch.no_grad():
        for index, segment in enumerate(network.segments().values()):
            assert torch.equal(network.run(entering, start=index), whole)
            reset_state(network)
            entering = network.step(segment, entering)


@pytest.mark.parametrize("name", SMALL)
def test_training_reaches_every_weight_that_is_read(name):
    network = alive(name).train()
    network(images()).square().sum().backward()
    unread = {"talking_heads"} if name == "sdt_v1" else {"norm1", "norm2"}
    for path, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
        else:
            assert unread & set(path.split(".")), path


def test_drop_path_grows_to_its_rate():
    for name in FAMILIES:
        network = small(name, drop_path_rate=0.2)
        rates = [m.drop_path.rate for m in network.modules() if hasattr(m, "drop_path")]
        assert rates[0] == 0.0 and rates[-1] == 0.2 and rates == sorted(rates)


def test_a_spec_builds_the_same_network_again():
    for name in FAMILIES:
        network = small(name)
        again = create_model(**network.spec)
        assert again.spec == network.spec
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes


def test_an_e_spikeformer_starts_with_small_branches():
    network = small("e_spikeformer")
    gains = {
        path: module.weight.unique().item()
        for path, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    # what adds to the residual stream, by name
    last = {path for path in gains if path.endswith((".bn2", ".projection.bn"))}
    assert {round(gains[path], 4) for path in last} == {0.3}
    assert {gains[path] for path in gains.keys() - last} == {1.5}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_is_the_one_that_python_makes(name, monkeypatch):
    network = alive(name)
    network.head.register_forward_hook(lambda *_: None)
    network.again, network.none = network.head, None
    found = copy.deepcopy(network)
    monkeypatch.delattr(SpikingTransformer, "__deepcopy__")
    expected = copy.deepcopy(network)
    modules = (each.named_modules(remove_duplicate=False) for each in (network, found, expected))
    for (path, module), (_, ours), (_, pythons) in zip(*modules, strict=True):
        assert type(ours) is type(pythons) and list(vars(ours)) == list(vars(pythons)), path
        for key, value in vars(ours).items():
            assert type(value) is type(vars(pythons)[key]), (path, key)
            if isinstance(value, dict):
                assert value is not vars(module)[key] and list(value) == list(vars(pythons)[key])
            elif not isinstance(value, torch.nn.Module):
                assert value == vars(pythons)[key], (path, key)
    assert found.again is found.head and len(found.head._forward_hooks) == 1
    for first, second in zip(
        network.state_dict().values(), found.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
    assert torch.equal(logits(found, images()), logits(network, images()))
