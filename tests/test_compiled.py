"""Compiled gradients of neurons against spikingjelly's, and what they leave to the others."""

import pytest
import torch
from test_neurons import PAIRS, currents

from psvit import compiled, pipeline
from psvit.config import check_config
from psvit.errors import UserError


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


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_spikingjelly_s(pair, dtype, steps, monkeypatch):
    ours, theirs, norm = pair
    asked = []
    for name in ("lif_gradient", "integer_gradient"):
        gradient = getattr(compiled, name)
        monkeypatch.setattr(compiled, name, lambda *x, run=gradient: asked.append(1) or run(*x))
    x, weight = currents(dtype, steps), currents(dtype, steps, scale=1.0).flip(1)
    for order in (torch.clone, channels_last):
        gradients = []
        for node in (ours, theirs):
            given = order(x).requires_grad_()
            node.reset()
            # in the other memory order
            (node(given) * channels_last(weight)).sum().backward()
            gradients.append(given.grad)
        assert gradients[1].abs().max() > 0.1
        tolerance = 1e-6 if dtype == torch.float64 else 1e-5
        assert (gradients[0] * norm - gradients[1]).abs().max() <= tolerance
    assert len(asked) == 2


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

    monkeypatch.setattr(compiled, "_compiled", lambda _: fails)
    with pytest.raises(
        UserError, match=r"compile=True: .*C\+\+.*\(No working C\+\+ compiler found\)$"
    ):
        compiled.compile_neurons(True)
    assert not compiled.serves(currents(torch.float32))


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
