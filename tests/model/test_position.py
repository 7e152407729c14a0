"""The condition equals the official code's position encoding, element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.model.position import position_encoding


def official_encoding(channels: int, height: int, width: int) -> np.ndarray:
    """cflow-ad's positionalencoding2d (channels, height, width), written out one element at a time."""
    half = channels // 2
    encoding = np.zeros((channels, height, width))
    for y in range(height):
        for x in range(width):
            for k in range(0, half, 2):
                frequency = math.exp(-k * math.log(10000.0) / half)
                encoding[k, y, x] = math.sin(x * frequency)
                encoding[k + 1, y, x] = math.cos(x * frequency)
                encoding[half + k, y, x] = math.sin(y * frequency)
                encoding[half + k + 1, y, x] = math.cos(y * frequency)
    return encoding


@pytest.mark.parametrize(("channels", "height", "width"), [(128, 8, 8), (128, 5, 11), (8, 1, 1), (4, 3, 2), (12, 1, 7)])
def test_equals_the_official_encoding_in_raster_order(channels: int, height: int, width: int) -> None:
    expected_PD = official_encoding(channels, height, width).reshape(channels, height * width).T
    np.testing.assert_allclose(position_encoding(channels, height, width).numpy(), expected_PD, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(quarter=st.integers(1, 40), height=st.integers(1, 40), width=st.integers(1, 40))
def test_shape_range_and_norm(quarter: int, height: int, width: int) -> None:
    encoding_PD = position_encoding(4 * quarter, height, width)
    assert encoding_PD.shape == (height * width, 4 * quarter)
    assert encoding_PD.dtype == torch.float32
    assert encoding_PD.abs().max() <= 1
    # every frequency contributes sin^2 + cos^2 = 1, once for the column and once for the row
    torch.testing.assert_close(encoding_PD.square().sum(1), torch.full((height * width,), 2.0 * quarter))


def test_every_position_of_a_large_map_has_its_own_code() -> None:
    codes = position_encoding(128, 64, 64)
    distances = torch.cdist(codes, codes) + 10 * torch.eye(len(codes))
    assert distances.min() > 0.1
