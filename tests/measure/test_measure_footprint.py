"""Sizes, counted by hand."""

import pytest
from torch import nn

from psvit.measure.footprint import memory_mb, memory_saving, parameters


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
