"""Calibration batches."""

import pytest
import torch
from tiny import Smooth


@pytest.fixture
def batches(images, labels):
    """Two batches for ``network``, the last one short."""
    return list(zip(images[:5].split(3), labels[:5].split(3), strict=True))


@pytest.fixture
def smooth():
    return Smooth()


@pytest.fixture
def smooth_batches():
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(5, 2, 7, 8, dtype=torch.float64, generator=generator)
    return [(images[:3], torch.tensor([0, 2, 1])), (images[3:], torch.tensor([1, 1]))]
