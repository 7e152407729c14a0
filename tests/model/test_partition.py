"""The parts of a category's normal images: disjoint, complete, large enough, and drawn by the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import ConfigError
from cflow_ray.model.partition import split_normals


@settings(deadline=None)
@given(
    count=st.integers(8, 300),
    selection=st.floats(0.01, 0.98),
    calibration=st.floats(0.01, 0.98),
    seed=st.integers(0, 2**32),
)
def test_split_is_disjoint_complete_and_large_enough_or_refused(
    count: int, selection: float, calibration: float, seed: int
) -> None:
    config = DetectorConfig(selection_fraction=selection, calibration_fraction=calibration)
    generator = torch.Generator().manual_seed(seed)
    if round(selection * count) + round(calibration * count) >= count:
        with pytest.raises(ConfigError, match=f"none of {count} normal"):
            split_normals(count, config, generator)
        return
    if selection + calibration > 0.4:  # the smallest parts may still ask for too much
        assume(max(2, round(selection * count)) + max(4, round(calibration * count)) < count)
        assume(max(4, round(selection * count)) + max(2, round(calibration * count)) < count)
    split = split_normals(count, config, generator)
    assert sorted(split.train + split.selection + split.calibration) == list(range(count))
    assert len(split.train) >= 1
    smallest = 4 if count >= 16 else count // 4
    for part, share in ((split.selection, selection), (split.calibration, calibration)):
        assert len(part) >= smallest
        assert len(part) == smallest or abs(len(part) - share * count) <= 0.5


@pytest.mark.parametrize("count", [8, 9, 15, 16, 40, 209, 391])
def test_with_the_default_shares_most_images_train(count: int) -> None:
    split = split_normals(count, DetectorConfig(), torch.Generator().manual_seed(0))
    assert len(split.train) >= count / 2
    assert min(len(split.selection), len(split.calibration)) >= 2


def test_the_split_is_drawn_not_in_order_and_follows_the_seed() -> None:
    splits = [split_normals(40, DetectorConfig(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]
    assert splits[0].train != tuple(range(12, 40))
