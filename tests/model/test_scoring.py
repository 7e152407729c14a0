"""The score is a function of one image, its p-value a promise about normal images, its regions scikit-image's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.measure
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from cflow_ray.model.scoring import Calibration, anomaly_map, image_scores
from cflow_ray.model.verdict import find_regions, judge

SCORES = st.lists(st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.25, 0.5])), min_size=1, max_size=60)
VALUES = st.floats(0, 1, width=32, exclude_max=True)
TARGETS = st.floats(0, 1, exclude_min=True, exclude_max=True)


def of_scores(scores: list[float]) -> Calibration:
    return Calibration.of((0.0,), scores)


# p-value and threshold


@given(scores=st.lists(st.floats(0, 1), max_size=60), score=st.floats(0, 1))
def test_p_value_is_the_counted_share(scores: list[float], score: float) -> None:
    at_least = sum(1 for other in scores if other >= score)
    assert of_scores(scores).p_value(score) == (1 + at_least) / (len(scores) + 1)


@given(scores=SCORES, pick=st.integers(0, 59))
def test_a_score_equal_to_a_calibration_score_counts_it(scores: list[float], pick: int) -> None:
    score = scores[pick % len(scores)]
    assert of_scores(scores).p_value(score) >= 2 / (len(scores) + 1)


@settings(max_examples=500)
@given(scores=SCORES, score=st.floats(0, 1), target=TARGETS)
@example(scores=[0.5], score=0.7, target=math.nextafter(0.5, 0))
@example(scores=[0.5], score=0.1, target=math.nextafter(1, 0))
@example(scores=[0.1] * 19, score=0.2, target=0.05)
@example(scores=[0.1] * 19, score=0.2, target=math.nextafter(0.05, 0))
@example(scores=[0.1] * 99, score=0.2, target=0.07)
@example(scores=[], score=0.2, target=math.nextafter(1, 0))
def test_an_anomaly_is_exactly_what_keeps_the_target(scores: list[float], score: float, target: float) -> None:
    calibration = of_scores(scores)
    verdict = judge(score, np.zeros((4, 4), np.float32), calibration, target, (0, 0, 4, 4))
    assert verdict.is_anomaly == (calibration.p_value(score) <= target)
    assert verdict.p_value == calibration.p_value(score)
    assert verdict.score == score


@given(scores=SCORES, target=TARGETS)
def test_the_judgement_of_calibration_scores_themselves_keeps_the_target(scores: list[float], target: float) -> None:
    calibration = of_scores(scores)
    tops = sum(calibration.p_value(score) <= target for score in scores)
    assert tops <= target * (len(scores) + 1)


@pytest.mark.parametrize("n", [1, 19, 48, 99, 160])
def test_a_target_that_the_calibration_can_keep_exactly_is_kept(n: int) -> None:
    """p-values are multiples of 1 / (n + 1): k of them are a target that floats must not round down to k - 1."""
    calibration = of_scores([k / 1000 for k in range(1, n + 1)])
    for k in range(1, n + 1):
        score = (n + 1 - k) / 1000 + 0.0005  # below k - 1 of the scores
        target = k / (n + 1)
        assert calibration.p_value(score) == target
        threshold = calibration.threshold(target)
        assert threshold is not None
        assert threshold < score


def test_a_target_below_the_smallest_promise_has_no_threshold() -> None:
    calibration = of_scores([0.1, 0.2, 0.3])
    assert calibration.smallest_target == 0.25
    assert calibration.threshold(0.24) is None
    assert calibration.threshold(0.25) == 0.3
    verdict = judge(0.99, np.ones((4, 4), np.float32), calibration, 0.24, (0, 0, 4, 4))
    assert not verdict.is_anomaly
    assert verdict.threshold is None
    assert verdict.regions == []


@given(count=st.integers(1, 100_000))
def test_the_rate_that_is_said_to_be_supported_is(count: int) -> None:
    calibration = of_scores([0.5] * count)
    said = calibration.support(0.5).removeprefix(f"{count} calibration images support false-alarm rates down to ")
    rate = float(said.removesuffix("."))
    assert calibration.threshold(rate) is not None
    assert rate == pytest.approx(calibration.smallest_target, rel=0.01)
    assert "nothing will be called" not in calibration.support(rate)


@given(count=st.integers(0, 2000), target=TARGETS)
def test_a_target_promises_the_largest_share_that_the_calibration_has(count: int, target: float) -> None:
    rank = of_scores([0.5] * count).rank(target)
    assert rank / (count + 1) <= target < (rank + 1) / (count + 1)


@given(scores=SCORES)
def test_the_order_of_the_calibration_scores_is_of_no_matter(scores: list[float]) -> None:
    assert of_scores(scores) == of_scores(scores[::-1])
    assert of_scores(scores).scores == tuple(sorted(scores))


def test_p_values_of_exchangeable_scores_are_uniform() -> None:
    rng = np.random.default_rng(0)
    n, trials = 19, 6000
    draws = rng.beta(2, 5, (trials, n + 1))
    p_values = [of_scores(list(draw[:-1])).p_value(draw[-1]) for draw in draws]
    counts = np.bincount([round(p * (n + 1)) for p in p_values], minlength=n + 2)[1:]
    assert len(counts) == n + 1
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    for target in (0.05, 0.1, 0.5):
        false_alarms = np.mean(np.array(p_values) <= target)
        assert abs(false_alarms - target) < 4 * math.sqrt(target * (1 - target) / trials)


# map and score


def likelihoods(images: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, side, side, generator=generator) - 1 for side in (8, 4, 2)]


def test_map_is_one_minus_the_mean_of_the_interpolated_levels() -> None:
    """Against scipy's linear interpolation on the grid that has the maps' corners in common."""
    levels, peaks, size = likelihoods(), (0.3, -0.5, 1.0), (48, 32)
    expected = np.zeros((3, *size))
    for level, peak in zip(levels, peaks, strict=True):
        p = np.exp(np.minimum(level.double().numpy() - peak, 0))
        side = level.shape[1]
        grid = np.meshgrid(np.linspace(0, side - 1, size[0]), np.linspace(0, side - 1, size[1]), indexing="ij")
        expected += np.stack([scipy.ndimage.map_coordinates(one, grid, order=1) for one in p])
    np.testing.assert_allclose(anomaly_map(levels, peaks, size).numpy(), 1 - expected / 3, atol=1e-6)


@pytest.mark.parametrize("value", [-math.inf, -1e30, -200.0, 0.0, 200.0, 1e30, math.inf])
def test_map_and_score_stay_below_one_and_not_below_zero(value: float) -> None:
    levels = [torch.full((2, side, side), value) for side in (8, 4)]
    map_BHW = anomaly_map(levels, (0.0, 0.0), (33, 65))
    for top_fraction in (0, 0.001, 0.37, 1):
        for values in (map_BHW, image_scores(map_BHW.flatten(1), top_fraction)):
            assert values.min() >= 0
            assert values.max() < 1
    assert float(map_BHW.mean()) == pytest.approx(0 if value >= 0 else 1, abs=1e-6)


def test_less_likely_means_more_anomalous_and_only_there() -> None:
    levels = likelihoods(1)
    before = anomaly_map(levels, (3.0, 3.0, 3.0), (64, 64))
    levels[0][0, 2, 5] -= 2
    after = anomaly_map(levels, (3.0, 3.0, 3.0), (64, 64))
    change = (after - before)[0]
    assert change.min() >= 0
    y, x = np.unravel_index(int(change.argmax()), (64, 64))
    assert (round(y * 7 / 63), round(x * 7 / 63)) == (2, 5)
    rows, columns = np.nonzero(change.numpy() > 1e-7)
    assert np.abs(rows * 7 / 63 - 2).max() < 1
    assert np.abs(columns * 7 / 63 - 5).max() < 1


def test_map_of_an_image_does_not_depend_on_its_batch() -> None:
    levels, peaks = likelihoods(6), (0.0, 0.5, 1.0)
    together = anomaly_map(levels, peaks, (64, 64))
    for index in range(6):
        alone = anomaly_map([level[[index]] for level in levels], peaks, (64, 64))
        torch.testing.assert_close(alone[0], together[index], atol=1e-7, rtol=0)
    extreme = [level.clone() for level in levels]
    for level in extreme:
        level[0] = 1e6  # under the paper's rule this neighbour would decide every map
    assert torch.equal(anomaly_map(extreme, peaks, (64, 64))[1:], together[1:])


def test_a_map_without_levels_is_no_map() -> None:
    with pytest.raises(ValueError, match="level"):
        anomaly_map([], (), (8, 8))


@settings(deadline=None)
@given(
    maps=npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
        elements=VALUES,
    ),
    top_fraction=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
)
def test_score_is_the_mean_of_the_highest_pixels(maps: np.ndarray, top_fraction: float) -> None:
    scores = image_scores(torch.from_numpy(maps).flatten(1), top_fraction).numpy()
    for score, one in zip(scores, maps, strict=True):
        highest = sorted((float(value) for value in one.ravel()), reverse=True)
        count = max(1, math.ceil(top_fraction * len(highest)))
        assert score == pytest.approx(sum(highest[:count]) / count, abs=1e-6)
        assert one.min() <= score <= one.max()


def test_fraction_0_is_the_maximum_and_1_the_mean() -> None:
    map_BHW = torch.rand(5, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(image_scores(map_BHW.flatten(1), 0), map_BHW.amax((1, 2)))
    torch.testing.assert_close(image_scores(map_BHW.flatten(1), 1), map_BHW.mean((1, 2)))
    descending = torch.stack([image_scores(map_BHW.flatten(1), fraction) for fraction in (0, 0.001, 0.01, 0.1, 1)])
    assert (descending.diff(dim=0) <= 0).all()


# regions


def blobs(seed: int, side: int = 48) -> np.ndarray:
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).random((side, side)), 1.5)
    return ((noise - noise.min()) / (np.ptp(noise) + 1e-3)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_regions_are_scikit_images(seed: int, threshold: float) -> None:
    map_HW = blobs(seed)
    expected = {
        ((left, top, right, bottom), float(part.area), float(part.intensity_max))
        for part in skimage.measure.regionprops(
            skimage.measure.label(map_HW > threshold, connectivity=2), intensity_image=map_HW
        )
        for top, left, bottom, right in [part.bbox]
    }
    regions = find_regions(map_HW, threshold, (0, 0, 48, 48))
    assert len(expected) >= 1
    assert {(region.box, region.area, region.peak) for region in regions} == expected
    assert len(regions) == len(expected)
    peaks = [region.peak for region in regions]
    assert peaks == sorted(peaks, reverse=True)


@settings(deadline=None)
@given(
    sides=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corner=st.tuples(st.integers(0, 900), st.integers(0, 900)),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    map_HW=npst.arrays(np.float32, (9, 9), elements=VALUES),
)
@example(sides=(25, 25), corner=(0, 0), width=7, height=7, map_HW=np.full((9, 9), 0.9, np.float32))
@example(sides=(35, 35), corner=(0, 0), width=29, height=29, map_HW=np.full((9, 9), 0.9, np.float32))
@example(sides=(35, 25), corner=(3, 900), width=29, height=7, map_HW=np.full((9, 9), 0.9, np.float32))
def test_boxes_lie_within_the_frame_and_hold_every_pixel_above(
    sides: tuple[int, int], corner: tuple[int, int], width: int, height: int, map_HW: np.ndarray
) -> None:
    map_HW = np.resize(map_HW, sides)
    frame_left, frame_top = corner
    regions = find_regions(map_HW, 0.5, (frame_left, frame_top, width, height))
    for region in regions:
        left, top, right, bottom = region.box
        assert all(isinstance(edge, int) for edge in region.box)
        assert frame_left <= left < right <= frame_left + width
        assert frame_top <= top < bottom <= frame_top + height
        assert 0.5 < region.peak < 1
    assert sum(region.area for region in regions) == pytest.approx((map_HW > 0.5).mean() * width * height)
    for y, x in np.argwhere(map_HW > 0.5):
        centre_x = frame_left + (x + 0.5) * width / sides[1]
        centre_y = frame_top + (y + 0.5) * height / sides[0]
        assert any(b[0] <= centre_x <= b[2] and b[1] <= centre_y <= b[3] for b in (region.box for region in regions))


def test_boxes_scale_to_an_original_of_another_aspect() -> None:
    map_HW = np.zeros((10, 10), np.float32)
    map_HW[2:4, 5:8] = 0.9
    (region,) = find_regions(map_HW, 0.5, (0, 0, 200, 30))
    assert region.box == (100, 6, 160, 12)
    assert region.area == pytest.approx(60 * 6)
    assert region.peak == np.float32(0.9)


def test_parts_that_touch_at_a_corner_are_one_region() -> None:
    map_HW = np.zeros((8, 8), np.float32)
    map_HW[2, 2] = map_HW[3, 3] = 0.9
    map_HW[6, 6] = 0.8
    assert [region.box for region in find_regions(map_HW, 0.5, (0, 0, 8, 8))] == [(2, 2, 4, 4), (6, 6, 7, 7)]


def test_without_a_threshold_or_below_it_there_are_no_regions() -> None:
    assert find_regions(np.full((8, 8), 0.9, np.float32), None, (0, 0, 8, 8)) == []
    assert find_regions(np.full((8, 8), 0.5, np.float32), 0.5, (0, 0, 8, 8)) == []


@settings(deadline=None)
@given(
    map_HW=npst.arrays(np.float32, (5, 7), elements=VALUES),
    scores=st.lists(st.floats(0, 1, width=32, exclude_max=True), min_size=1, max_size=30),
    target=TARGETS,
    top_fraction=st.floats(0, 1),
)
@example(map_HW=np.full((5, 7), np.float32(0.3)), scores=[float(np.float32(0.3))], target=0.5, top_fraction=1.0)
def test_an_anomalous_image_has_a_region_that_says_where(
    map_HW: np.ndarray, scores: list[float], target: float, top_fraction: float
) -> None:
    score = float(image_scores(torch.from_numpy(map_HW).flatten()[None], top_fraction)[0])
    verdict = judge(score, map_HW, of_scores(scores), target, (5, 3, 70, 50))
    if verdict.is_anomaly:
        assert verdict.regions
    assert all(region.peak > verdict.threshold for region in verdict.regions)
