"""Compiled neurons against spikingjelly's, bit for bit, and what they leave to the others."""

import pytest
import torch
from test_neurons import PAIRS, currents

from psvit import compiled, pipeline
from psvit.config import check_config
from psvit.errors import UserError
from psvit.inference import optimize_for_inference
from psvit.neurons import LIF


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    monkeypatch.setattr(compiled, "_MANY", 1)
    compiled.compile_neurons(True)
    yield
    compiled.compile_neurons(False)


@pytest.fixture(params=["lif", "slow lif", "integer head"])
def pair(request):
    ours, theirs, norm = PAIRS[request.param]
    return ours(), theirs(), norm


def channels_last(x):
    return x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


def test_spikes_and_state_are_spikingjelly_s(pair):
    ours, theirs, norm = pair
    x = currents(torch.float32, steps=4)
    with torch.no_grad():
        # the second call starts from the state of the first, in another memory order
        for part in (x[:2], channels_last(x[2:])):
            assert compiled.serves(part)
            spikes = ours(part)
            assert torch.equal(spikes * norm, theirs(part))
            assert torch.equal(ours.v, theirs.v)
            assert spikes.stride() == part.stride() and ours.v.stride() == part[0].stride()
        assert 0.01 < (spikes > 0).double().mean() < 0.99
        # a view whose steps are one tensor, as a static image's
        still = x[:1].expand(2, -1, -1, -1, -1)
        ours.reset(), theirs.reset()
        assert compiled.serves(still)
        assert torch.equal(ours(still) * norm, theirs(still))


@pytest.mark.parametrize("steps", [1, 2])
def test_training_gives_spikingjelly_s_gradients(pair, steps):
    ours, theirs, norm = pair
    x, weight = (currents(torch.float64, steps), currents(torch.float64, steps, scale=1.0))
    # gradients may come in another memory order
    weight = channels_last(weight.flip(1))
    gradients, spikes = [], []
    for node in (ours, theirs):
        given = x.clone().requires_grad_()
        spikes.append(node(given))
        (spikes[-1] * weight).sum().backward()
        gradients.append(given.grad)
    assert torch.equal(spikes[0] * norm, spikes[1])
    assert torch.equal(ours.v, theirs.v)
    assert gradients[1].abs().max() > 0.1
    assert (gradients[0] * norm - gradients[1]).abs().max() <= 1e-6


def test_a_network_gives_the_same_logits(network, images):
    network = optimize_for_inference(network)
    with torch.inference_mode():
        answers = network(images)
        compiled.compile_neurons(False)
        assert torch.equal(network(images), answers)


def test_what_is_not_compiled(monkeypatch):
    x = currents(torch.float32)
    assert not compiled.serves(x.bfloat16())
    # neither of the two memory orders
    assert not compiled.serves(x.transpose(2, 3))
    # a step is not next to the one before it
    assert not compiled.serves(x[::2])
    monkeypatch.setattr(compiled, "_MANY", x.numel() + 1)
    assert not compiled.serves(x)
    monkeypatch.setattr(compiled, "_MANY", x.numel())
    assert compiled.serves(x)
    compiled.compile_neurons(False)
    assert not compiled.serves(x)


def test_no_compiler(monkeypatch):
    def fails(*_):
        raise RuntimeError("No working C++ compiler found\nlines of advice")

    monkeypatch.setattr(compiled, "_compiled", lambda steps: fails)
    with pytest.raises(
        UserError, match=r"compile=True: .*C\+\+.*\(No working C\+\+ compiler found\)$"
    ):
        compiled.compile_neurons(True)
    with torch.no_grad():
        assert LIF()(torch.full((1, 1), 2.0)).item() == 1.0


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_compiles_if_asked(config, tiny_run, tmp_path, monkeypatch, wanted):
    class Asked(Exception):
        pass

    def ask(value):
        raise Asked(value)

    monkeypatch.setattr(pipeline, "compile_neurons", ask)
    with pytest.raises(Asked, match=str(wanted)):
        pipeline.run(config(*tiny_run, f"compile={wanted}"), tmp_path)


def test_only_where_it_has_an_effect(config, monkeypatch):
    check_config(config("compile=true"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="compile=True: expected false, or trainer=cpu"):
        check_config(config("compile=true", "trainer=gpu"))
