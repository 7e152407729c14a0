"""The parts of a category's normal images: disjoint, complete, large enough, and drawn by the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.model.partition import cross_normals, halve_normals, split_normals


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


# folds


@settings(deadline=None)
@given(
    count=st.integers(8, 300),
    folds=st.integers(2, 20),
    selection=st.floats(0.01, 0.8),  # more may leave none of four images to train
    seed=st.integers(0, 2**32),
)
def test_folds_cover_every_image_once_and_no_image_is_in_two_parts(
    count: int, folds: int, selection: float, seed: int
) -> None:
    config = DetectorConfig(folds=folds, selection_fraction=selection)
    splits = cross_normals(count, config, torch.Generator().manual_seed(seed))
    assert len(splits) == min(folds, count) + 1
    everyone = list(range(count))
    assert sorted(image for split in splits for image in split.calibration) == everyone
    sizes = [len(split.calibration) for split in splits[:-1]]
    assert max(sizes) - min(sizes) <= 1
    for split in splits:
        assert sorted(split.train + split.selection + split.calibration) == everyone
        assert min(len(split.train), len(split.selection)) >= 1


def test_the_last_split_is_the_final_models_and_calibrates_none() -> None:
    *folds, final = cross_normals(50, DetectorConfig(), torch.Generator().manual_seed(0))
    assert final.calibration == ()
    assert (len(final.train), len(final.selection)) == (45, 5)
    assert [len(split.calibration) for split in folds] == [10] * 5


def test_folds_are_drawn_and_follow_the_seed() -> None:
    first, again, other = (cross_normals(40, DetectorConfig(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0].calibration not in (tuple(range(8)), tuple(range(0, 40, 5)))


def test_folds_that_leave_none_to_train_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection_fraction 0\.99 leaves none of 8 normal"):
        cross_normals(10, DetectorConfig(selection_fraction=0.99), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_neither_folds_nor_halves_are_made_of_fewer_than_eight(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(DataError, match=rf"{count} normal.*at least 8"):
        cross_normals(count, DetectorConfig(), generator)
    with pytest.raises(DataError, match=rf"{count} normal.*at least 8"):
        halve_normals(count, generator)


@given(count=st.integers(8, 300), seed=st.integers(0, 2**32))
def test_halves_train_none_and_the_odd_image_calibrates(count: int, seed: int) -> None:
    split = halve_normals(count, torch.Generator().manual_seed(seed))
    assert split.train == ()
    assert sorted(split.selection + split.calibration) == list(range(count))
    assert len(split.calibration) - len(split.selection) == count % 2
