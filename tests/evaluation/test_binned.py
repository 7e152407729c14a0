"""Binned bounds contain the exact figure of any maps, are tight on maps as they occur, and states add up exactly."""

from __future__ import annotations

import functools
import operator
import pickle
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from cflow_ray.evaluation.binned import BINS, BinnedPixels, bin_of
from cflow_ray.evaluation.pixels import JudgedMap, exact_counts, pixel_figures

NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro", "aupro_005", "aupimo")

Judged = tuple[NDArray[np.float32], NDArray[np.bool_]]


def binned(images: Iterable[Judged]) -> BinnedPixels:
    state = BinnedPixels()
    for map_HW, mask_HW in images:
        state.update(map_HW, mask_HW, normal=not mask_HW.any())
    return state


def exact(images: Sequence[Judged]) -> dict[str, float]:
    judged = [JudgedMap.of(map_HW, mask_HW, not mask_HW.any()) for map_HW, mask_HW in images]
    figures = {name: float(value) for name, value in pixel_figures(exact_counts(judged)[1]).items()}
    return {name: value for name, value in figures.items() if np.isfinite(value)}


# Values that crowd: both ends, neighbours in floating point, one narrow bin, and the whole of [0, 1].
CROWDED = st.one_of(
    st.floats(0, 1, width=32),
    st.integers(0, 40).map(lambda step: np.float32(step * 2.0**-24)),
    st.integers(0, 40).map(lambda step: np.float32(1 - step * 2.0**-24)),
    st.integers(-20, 20).map(lambda step: np.float32(0.3 + step * 1e-6)),
    st.integers(-20, 20).map(lambda step: np.float32(0.5 + step * 2.0**-24)),
)


def some_images(count: int = 3) -> st.SearchStrategy[list[Judged]]:
    maps = npst.arrays(np.float32, (4, 5), elements=CROWDED)
    masks = npst.arrays(np.bool_, (4, 5), elements=st.sampled_from([False, False, True]))
    return st.lists(st.tuples(maps, st.one_of(masks, st.just(np.zeros((4, 5), bool)))), min_size=count, max_size=count)


# bins


@given(values=npst.arrays(np.float32, 50, elements=CROWDED))
def test_a_higher_value_never_has_a_lower_bin(values: NDArray[np.float32]) -> None:
    values.sort()
    bins = bin_of(values)
    assert (np.diff(bins) >= 0).all()
    assert 0 <= bins[0] <= bins[-1] < BINS


def test_bins_span_the_scale_and_are_fine_everywhere() -> None:
    assert bin_of(np.array([0.0, 1.0], np.float32)).tolist() == [0, BINS - 1]
    wide = np.arange(0, 2**24, 2**10 + 1) / np.float32(2**24)  # just further apart than 2^-14
    assert (np.diff(bin_of(wide.astype(np.float32))) >= 1).all()
    steps = np.arange(2**13, dtype=np.float32) * np.float32(2**-24)
    assert len(np.unique(bin_of(steps))) == steps.size  # every multiple of 2^-24 within 2^-11 of an end
    assert len(np.unique(bin_of(1 - steps))) == steps.size


# bounds


@settings(deadline=None, max_examples=100)
@given(images=some_images())
def test_bounds_contain_the_exact_figures_whatever_the_maps(images: list[Judged]) -> None:
    bounds, figures = binned(images).compute(), exact(images)
    assert bounds.keys() == figures.keys()
    for name, value in figures.items():
        assert bounds[name].low - 1e-7 <= value <= bounds[name].high + 1e-7, name
        assert bounds[name].low - 1e-7 <= bounds[name].value <= bounds[name].high + 1e-7
        assert abs(bounds[name].value - value) <= bounds[name].error + 1e-7


def logistic(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


SHAPES: dict[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float32]]] = {
    "broad": lambda noise, mask: logistic(0.9 * noise - 1 + 1.5 * mask),
    "near zero": lambda noise, mask: logistic(noise - 9 + 1.5 * mask),
    "near one": lambda noise, mask: logistic(noise + 9 + 1.5 * mask),
    "both ends": lambda noise, mask: logistic(2 * noise - 6 + 10 * mask),
    "narrow": lambda noise, mask: (0.4 + 0.02 * noise + 0.04 * mask).astype(np.float32),
    "8 bit": lambda noise, mask: np.round(255 * logistic(noise - 1 + 2 * mask)) / np.float32(255),
    "16 bit": lambda noise, mask: np.round(65535 * logistic(noise - 1 + 2 * mask)) / np.float32(65535),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_binned_figures_are_within_a_thousandth_of_the_exact_ones(shape: str) -> None:
    rng = np.random.default_rng(0)
    images = []
    for number in range(16):
        mask = np.zeros((160, 160), bool)
        if number % 2:
            mask[20 : 40 + 2 * number, 30:50] = mask[120:125, 100:140] = True
        images.append((SHAPES[shape](rng.standard_normal(mask.shape), mask), mask))
    bounds, figures = binned(images).compute(), exact(images)
    assert set(figures) == set(NAMES)
    assert figures["pixel_auroc"] > 0.6
    for name, value in figures.items():
        assert abs(bounds[name].value - value) <= 1e-3, name
        assert bounds[name].low - 1e-7 <= value <= bounds[name].high + 1e-7, name
        if name not in ("pixel_ap", "pixel_f1") and shape != "8 bit":  # 256 values tie whole parts of the pixels
            assert bounds[name].error <= 1e-3, name


def test_the_error_of_auroc_and_aupro_is_as_small_as_stated() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((200, 200), bool)
    mask[50:90, 50:90] = True
    images = [
        ((0.4 + 0.0125 * rng.standard_normal(mask.shape) + 0.01 * one).astype(np.float32), one)
        for one in (mask, np.zeros_like(mask))
    ]
    state = binned(images)
    bounds, (good_K, defect_K) = state.compute(), state.table_5K[:2]
    share = good_K.max() / good_K.sum()
    assert 0 < bounds["pixel_auroc"].error <= min(share, defect_K.max() / defect_K.sum()) / 2 + 1e-12
    assert bounds["pixel_auroc"].error <= 1e-3  # a standard deviation of 0.0125
    assert bounds["aupro"].high - bounds["aupro"].low <= share / 0.3
    assert bounds["aupro_005"].high - bounds["aupro_005"].low <= share / 0.05
    filled = np.flatnonzero(good_K + defect_K)[::-1]
    good, defect = good_K[filled], defect_K[filled]
    down_to = (good + defect).cumsum()
    assert bounds["pixel_f1"].high - bounds["pixel_f1"].low <= (good / (down_to + defect.sum())).max()
    steps = np.minimum(1, (good + defect) / np.maximum(1e-9, down_to - defect))
    assert bounds["pixel_ap"].high - bounds["pixel_ap"].low <= (defect * steps).sum() / defect.sum()


def test_maps_in_one_bin_leave_everything_open() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:7] = True
    bounds = binned([(np.full((10, 10), 0.3, np.float32), mask), (np.full((10, 10), 0.3, np.float32), mask & False)])
    found = bounds.compute()
    assert {name: (one.low, one.high) for name, one in found.items() if name not in ("pixel_ap", "pixel_f1")} == {
        name: (pytest.approx(0), pytest.approx(1)) for name in ("pixel_auroc", "aupro", "aupro_005", "aupimo")
    }
    assert found["pixel_ap"].low < 0.05
    assert found["pixel_f1"].low == pytest.approx(2 * 0.05 / 1.05)
    assert found["pixel_ap"].high == found["pixel_f1"].high == 1


def test_values_that_are_equal_within_a_bin_are_judged_exactly() -> None:
    rng = np.random.default_rng(2)
    images = [
        (np.round(20 * rng.random((30, 30))).astype(np.float32) / np.float32(20), rng.random((30, 30)) < share)
        for share in (0, 0.3, 0, 0.1)
    ]
    found = {name: bounds.value for name, bounds in binned(images).compute().items()}
    assert found == pytest.approx(exact(images), abs=1e-7)


def test_only_figures_that_the_images_allow_are_bounded() -> None:
    assert BinnedPixels().compute() == {}
    good = (np.full((3, 3), 0.25, np.float32), np.zeros((3, 3), bool))
    assert binned([good]).compute() == {}
    mask = np.eye(3, dtype=bool)
    assert set(binned([(good[0], mask)]).compute()) == set(NAMES) - {"aupimo"}


# adding up


@settings(deadline=None, max_examples=40)
@given(images=some_images(4), cuts=st.tuples(st.integers(0, 4), st.integers(0, 4)), order=st.permutations(range(4)))
def test_sums_of_parts_in_any_order_are_one_pass(images: list[Judged], cuts: tuple[int, int], order: list[int]) -> None:
    first, second = sorted(cuts)
    mixed = [images[number] for number in order]
    a, b, c = (binned(part) for part in (mixed[:first], mixed[first:second], mixed[second:]))
    whole = binned(images).table_5K
    for merged in ((a + b) + c, a + (b + c), (c + a) + b):
        np.testing.assert_array_equal(merged.table_5K, whole)


def test_adding_changes_neither_part_and_a_state_survives_the_wire() -> None:
    rng = np.random.default_rng(3)
    images = [(rng.random((20, 20), dtype=np.float32), rng.random((20, 20)) < 0.2) for _ in range(3)]
    states = [binned([image]) for image in images]
    before = [state.table_5K.copy() for state in states]
    total = functools.reduce(operator.add, [pickle.loads(pickle.dumps(state)) for state in states], BinnedPixels())
    for state, table in zip(states, before, strict=True):
        np.testing.assert_array_equal(state.table_5K, table)
    assert total.compute() == binned(images).compute()


@settings(deadline=None, max_examples=40)
@given(images=some_images(3))
def test_every_pixel_region_and_image_is_counted_whole(images: list[Judged]) -> None:
    judged = [JudgedMap.of(map_HW, mask_HW, not mask_HW.any()) for map_HW, mask_HW in images]
    good, defect, overlap, normal, found = binned(images).table_5K.sum(axis=1)
    assert good == sum(int((~mask).sum()) for _, mask in images)
    assert defect == sum(int(mask.sum()) for _, mask in images)
    assert overlap == 2**40 * sum(int(one.region_P.max(initial=-1)) + 1 for one in judged)
    assert normal == 2**40 * sum(not mask.any() for _, mask in images)
    assert found == 2**40 * sum(bool(mask.any()) for _, mask in images)
