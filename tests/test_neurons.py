"""Our neurons against spikingjelly's, bit for bit, and against numbers worked out by hand."""

import copy

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from psvit.neurons import LIF, IntegerLIF, reset_state

DTYPES = [torch.float32, torch.float64]


def currents(dtype, steps=5, scale=1.5):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(steps, 2, 6, 4, 4, dtype=dtype, generator=generator)


def reference_lif(tau, v_threshold):
    return neuron.LIFNode(
        tau=tau,
        v_threshold=v_threshold,
        surrogate_function=surrogate.Sigmoid(),
        detach_reset=True,
        step_mode="m",
    )


PAIRS = {
    "lif": (lambda: LIF(), lambda: reference_lif(2.0, 1.0), 1.0),
    "lif of attention": (lambda: LIF(v_threshold=0.5), lambda: reference_lif(2.0, 0.5), 1.0),
    "slow lif": (lambda: LIF(tau=3.7), lambda: reference_lif(3.7, 1.0), 1.0),
    "integer": (lambda: IntegerLIF(), lambda: neuron.ILIFNode(step_mode="m"), 4.0),
    "integer head": (lambda: IntegerLIF(norm=1), lambda: neuron.ILIFNode(step_mode="m"), 1.0),
    "eight levels": (
        lambda: IntegerLIF(levels=8),
        lambda: neuron.ILIFNode(
            surrogate_function=surrogate.MultiLevelSpikeCount(8), step_mode="m"
        ),
        8.0,
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    ours, theirs, norm = PAIRS[request.param]
    return ours(), theirs(), norm


@pytest.mark.parametrize("dtype", DTYPES)
def test_spikes_and_state_are_spikingjelly_s(pair, dtype):
    ours, theirs, norm = pair
    x = currents(dtype)
    with torch.no_grad():
        # two calls without a reset: the second starts from the state of the first
        for part in (x[:3], x[3:]):
            spikes, expected = ours(part), theirs(part)
            assert torch.equal(spikes * norm, expected)
            assert spikes.dtype == dtype
            assert torch.equal(ours.v, theirs.v)
        assert 0.01 < (spikes > 0).double().mean() < 0.99
        # a view whose steps are one tensor, as a static image's
        still = x[:1].expand(4, -1, -1, -1, -1)
        ours.reset(), theirs.reset()
        assert torch.equal(ours(still) * norm, theirs(still))


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_gives_spikingjelly_s_gradients(pair, dtype):
    ours, theirs, norm = pair
    x, weight = currents(dtype), currents(dtype, scale=1.0).flip(0)
    gradients, spikes = [], []
    for node in (ours, theirs):
        given = x.clone().requires_grad_()
        spikes.append(node(given))
        (spikes[-1] * weight).sum().backward()
        gradients.append(given.grad)
    assert torch.equal(spikes[0] * norm, spikes[1])
    assert torch.equal(ours.v, theirs.v)
    assert gradients[1].abs().max() > 0.1
    tolerance = 1e-6 if dtype == torch.float64 else 1e-5
    assert (gradients[0] * norm - gradients[1]).abs().max() <= tolerance


def test_inference_and_training_fire_alike(pair):
    ours = pair[0]
    x = currents(torch.float32)
    trained = ours(x.clone().requires_grad_())
    assert trained.requires_grad
    ours.reset()
    with torch.no_grad():
        assert torch.equal(ours(x), trained)


def test_reset_forgets_the_membrane_potential(pair):
    network = torch.nn.Sequential(pair[0])
    x = currents(torch.float64)
    with torch.no_grad():
        first = network(x)
        assert network[0].v.abs().max() > 0
        reset_state(network)
        assert network[0].v == 0.0
        assert torch.equal(network(x), first)
        # not reset, it would have gone on from there
        assert not torch.equal(network(x), first)


def test_a_neuron_that_has_trained_can_be_copied(pair):
    ours = pair[0]
    ours(currents(torch.float32).requires_grad_())
    assert torch.equal(copy.deepcopy(ours).v, ours.v)


def test_lif_by_hand():
    # tau = 2: H = V / 2 + X / 2; 1.5 is below 1 at first, then 0.75 / 2 + 0.75 = 1.125 fires
    x = torch.tensor([1.5, 1.5, 1.5, 2.0]).view(4, 1)
    assert LIF()(x).flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
    # exactly at the threshold it fires
    assert LIF()(torch.full((1, 1), 2.0)).item() == 1.0


def test_integer_spikes_by_hand():
    # halves go to the even neighbour; at most 4, never negative; the count over 4; gradients pass
    # from 0 to 4, both included
    x = torch.tensor([[-1.0, 0.0, 0.4, 0.5, 0.6, 1.5, 2.5, 3.9, 4.0, 9.0]], requires_grad=True)
    spikes = IntegerLIF()(x)
    assert (4 * spikes).flatten().tolist() == [0, 0, 0, 0, 1, 2, 2, 4, 4, 4]
    spikes.sum().backward()
    assert x.grad.flatten().tolist() == [0, *[0.25] * 8, 0]
    # what is left over decays to a quarter: 0.4 / 4 + 0.45 = 0.55
    steps = torch.tensor([[0.4], [0.45]])
    assert IntegerLIF(norm=1)(steps).flatten().tolist() == [0.0, 1.0]
