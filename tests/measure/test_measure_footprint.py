"""Sizes, counted by hand."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from psvit.measure.footprint import measure_footprint, memory_mb, memory_saving, parameters
from psvit.measure.operations import count_macs
from psvit.models import create_model
from psvit.neurons import LIF, reset_state


def test_a_small_network_by_hand():
    # 4·3·3·3 + 4 of the convolution; 4 weights, biases, means and variances of the batch norm,
    # and one int64 that counts batches; 2·4 of the linear layer
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    assert parameters(network) == 108 + 4 + 8 + 8
    assert memory_mb(network) == pytest.approx((4 * (108 + 4 + 16 + 8) + 8) / 1e6, rel=1e-12)
    # the types they have
    assert memory_mb(network.half()) == pytest.approx((2 * (108 + 4 + 16 + 8) + 8) / 1e6, rel=1e-12)


def test_a_shared_parameter_counts_once():
    layer = nn.Linear(3, 3, bias=False)
    assert parameters(nn.Sequential(layer, layer)) == 9
    assert memory_mb(nn.Sequential(layer, layer)) == pytest.approx(36e-6)


@pytest.mark.parametrize(
    ("pruned", "base", "saving"), [(75, 100, 0.25), (100, 100, 0.0), (1, 4, 0.75)]
)
def test_memory_saving(pruned, base, saving):
    assert memory_saving(pruned, base) == saving


class Chain(nn.Module):
    """Images ``[B, 3, 4, 4]`` -> convolution -> neuron over three steps -> their mean."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)
        self.neuron = LIF()

    def forward(self, x):
        reset_state(self)
        x = self.conv(x)
        return self.neuron(x.expand(3, *x.shape)).mean(0)


def test_a_run_by_hand():
    network = Chain()
    stored, half = measure_footprint(network, torch.rand(2, 3, 4, 4)).to_dict("records")
    assert (stored["dtype"], half["dtype"]) == ("float32", "float16")
    assert stored["weight_bytes"] == 4 * 20 and half["weight_bytes"] == 2 * 20
    assert stored["buffer_bytes"] == 0 and stored["batch_size"] == 2
    # potentials of one step; current, spikes of three steps and a potential while the next is made
    step = 2 * 5 * 4 * 4 * 4
    assert stored["membrane_bytes"] == step and half["membrane_bytes"] == step // 2
    assert stored["peak_activation_bytes"] == (1 + 3 + 2) * step
    assert half["peak_activation_bytes"] == (1 + 3 + 2) * step // 2


def test_a_checkpoint_is_as_large_as_its_file(network, images, tmp_path):
    network = network.float()
    rows = measure_footprint(network, images[:2].float()).set_index("dtype")
    save_file(network.state_dict(), tmp_path / "float32")
    save_file(network.half().state_dict(), tmp_path / "float16")
    for dtype, row in rows.iterrows():
        assert row["checkpoint_bytes"] == (tmp_path / dtype).stat().st_size
        # whole numbers do not shrink
        assert row["weight_bytes"] + row["buffer_bytes"] < row["checkpoint_bytes"]


def test_activations_are_those_that_the_allocator_saw(network, images):
    # as networks run here: at float64, or with channels first, convolutions make copies inside
    network = network.float().to(memory_format=torch.channels_last)
    images = images.float()
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        network(images)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    reset_state(network)
    (row,) = measure_footprint(network, images)[:1].to_dict("records")
    assert row["peak_activation_bytes"] == pytest.approx(peak, rel=0.05)
    one = measure_footprint(network, images[:1])
    assert row["membrane_bytes"] == 11 * one["membrane_bytes"][0] > 0
    assert all(isinstance(n.v, float) for n in network.modules() if isinstance(n, LIF))


def test_the_network_that_docs_measures_counts_by_hand(config):
    values = OmegaConf.to_container(config().model, resolve=True)
    network = create_model(**{**values, "num_classes": 10, "in_channels": 3})
    stored = measure_footprint(network, torch.rand(1, 3, 32, 32)).iloc[0]
    assert (stored["weight_bytes"], stored["buffer_bytes"]) == (1_237_416, 27_160)
    # neurons of stage 1a, then of each stage's entrance and blocks, and of the head
    neurons = 16_384 + (2_048 + 8_192) + (1_024 + 4_096) + (512 + 15_360) + (768 + 10_240) + 64
    assert stored["membrane_bytes"] == 4 * neurons == 4 * 58_688
    assert count_macs(network) == 301_056 + 4 * 7_288_448
