"""What is exported answers as torch does, for any batch; what does not is refused."""

import onnx
import pytest
import torch
from export_networks import FAMILIES, alive, assert_same, cut, noise, torch_logits
from torch import nn

from psvit.errors import UserError
from psvit.export import check, logits_only, to_onnx
from psvit.neurons import LIF, IntegerLIF, reset_state
from psvit.pruning import prune


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_in_torch_base_and_pruned(name):
    base = alive(name, time_steps=2)
    pruned = prune(base, cut(base))
    if name == "e_spikeformer":
        # as it is released
        pruned.time_steps = 1
    for network in (base, pruned):
        model = logits_only(to_onnx(network, noise(2, 3, 32, 32)))
        onnx.checker.check_model(model)
        assert_same(network, model, noise(5, 3, 32, 32), noise(1, 3, 32, 32))


@pytest.mark.parametrize("neuron", ["lif", "integer"])
def test_event_frames_bring_their_own_steps(neuron):
    network = alive("tiny_export", in_channels=2, neuron=neuron)
    model = logits_only(to_onnx(network, noise(2, 5, 2, 8, 8)))
    assert_same(network, model, noise(4, 5, 2, 8, 8))


@pytest.fixture(scope="module")
def exported():
    """A tiny network, what it answered before its export, and its graph at opset 18."""
    network = alive("tiny_export")
    before = torch_logits(network, noise(3, 3, 8, 8))
    return network, before, to_onnx(network, noise(2, 3, 8, 8), opset=18)


def test_the_opset_is_the_one_asked_for(exported):
    network, _, model = exported
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    assert_same(network, model, noise(3, 3, 8, 8))


def test_exporting_leaves_the_network_as_it_is(exported):
    network, before, _ = exported
    assert isinstance(network.head.neuron, LIF)
    assert torch.equal(torch_logits(network, noise(3, 3, 8, 8)), before)


class Readout(nn.Module):
    """Four pixels, each with a neuron of its own over two steps, and a linear layer."""

    def __init__(self, neuron, gain=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.neuron, self.fc = neuron, nn.Linear(4, 3)
        # not a number, which the exporter drops where it is almost 1
        self.gain = nn.Parameter(torch.full((4,), gain))

    def forward(self, images):
        reset_state(self)
        currents = (images.flatten(1) * self.gain).expand(2, -1, -1)
        first, second = self.neuron(currents)
        # so that it matters when a neuron fires
        return self.fc(first - 0.5 * second)


def pixels(*values):
    """Images ``[B, 1, 2, 2]`` of which the first has these pixels; the others drive no spike."""
    images = torch.full((3, 1, 2, 2), 0.125)
    images[0] = torch.tensor(values).view(1, 2, 2)
    return images


@pytest.fixture(scope="module")
def readouts():
    """What was exported: each kind of neuron behind a gain of 1."""
    return {make: to_onnx(Readout(make()), pixels(*[1.0] * 4)) for make in (LIF, IntegerLIF)}


# the first pixel brings its potential to a threshold at the first step, no other comes near one;
# a LIF that fires and is reset to 0 stands there again at the second
@pytest.mark.parametrize(("make", "at", "flipped"), [(LIF, 2.0, 2), (IntegerLIF, 1.5, 1)])
def test_a_flipped_spike_is_told_and_accepted(readouts, make, at, flipped):
    images = pixels(at, 0.25, 0.25, 0.25)
    rounded = Readout(make(), gain=1 - 1e-6).eval()
    found = check(rounded, readouts[make], images, batch_size=2)
    assert (found.images, found.agree, found.flipped) == (3, 2, flipped)
    assert found.distance < 2e-6 and found.forced_difference < 1e-6
    assert "2 of 3" in str(found) and f"{flipped} in their batches" in str(found)


@pytest.mark.parametrize(("make", "near"), [(LIF, 2.01), (IntegerLIF, 1.505)])
def test_a_spike_that_rounding_cannot_flip_is_refused(readouts, make, near):
    images = pixels(near, 0.25, 0.25, 0.25)
    with pytest.raises(UserError, match="not by spikes within"):
        check(Readout(make(), gain=0.99).eval(), readouts[make], images)


@pytest.mark.parametrize("fault", [2e-4, torch.nan])
def test_logits_that_differ_with_the_same_spikes_are_refused(readouts, fault):
    images, wrong = pixels(2.0, 1.0, 3.0, 0.5), Readout(LIF()).eval()
    check(wrong, readouts[LIF], images)
    with torch.no_grad():
        wrong.fc.bias[1] += fault
    with pytest.raises(UserError, match="given the same spikes: (2e-04|0.0002|inf)"):
        check(wrong, readouts[LIF], images)


def test_a_neuron_with_foreign_settings_is_refused():
    neuron = LIF()
    neuron.v_reset = None
    with pytest.raises(UserError, match="neuron"):
        to_onnx(Readout(neuron), pixels(1.0, 1.0, 1.0, 1.0))
