"""Resampled figures are those of images that occur again; intervals are repeatable and cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cflow_ray.evaluation.bootstrap import (
    intervals,
    level_edges,
    resampled_weights,
    weighted_image_figures,
    weighted_pixel_figures,
)
from cflow_ray.evaluation.metrics import image_figures
from cflow_ray.evaluation.pixels import JudgedMap, exact_counts, pixel_figures

SCORES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1 - 2**-24])


def auroc_interval(
    scores: NDArray[np.float64], labels: NDArray[np.int64], seed: int, resamples: int = 300
) -> tuple[float, float]:
    weighted = weighted_image_figures(scores, labels)
    exact = {"image_auroc": float(weighted(np.ones((1, scores.size)))["image_auroc"][0])}
    return intervals(exact, weighted, labels, np.random.default_rng(seed), resamples)["image_auroc"]


# resamples


def test_resamples_draw_as_many_good_and_anomalous_images_as_there_are() -> None:
    labels = np.array([0, 1, 1, 0, 1, 0, 1])
    blocks = list(resampled_weights(labels, np.random.default_rng(0), 120))
    weights = np.concatenate(blocks)
    assert weights.shape == (120, 7)
    np.testing.assert_array_equal(weights[:, labels == 0].sum(1), 3)
    np.testing.assert_array_equal(weights[:, labels == 1].sum(1), 4)
    assert len(np.unique(weights, axis=0)) > 60
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.3)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(SCORES, st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=25).filter(
        lambda rows: len({label for _, label, times in rows if times}) == 2
    )
)
def test_image_figures_of_weights_are_those_of_repeated_images(rows: list[tuple[float, int, int]]) -> None:
    scores, labels, times = (np.array(column) for column in zip(*rows, strict=True))
    found = weighted_image_figures(scores, labels)(np.stack([times, np.ones_like(times)]).astype(float))
    expected = image_figures(np.repeat(scores, times), np.repeat(labels, times))
    assert {name: value[0] for name, value in found.items()} == pytest.approx(expected, abs=1e-6)
    assert {name: value[1] for name, value in found.items()} == pytest.approx(image_figures(scores, labels), abs=1e-6)


def judged_images(noise: float, count: int = 12) -> list[JudgedMap]:
    rng = np.random.default_rng(5)
    images = []
    for number in range(count):
        mask = np.zeros((60, 70), bool)
        if number % 2:
            mask[5 : 12 + number, 10 : 20 + number] = mask[50:53, 5:30] = True
        logits = noise * rng.standard_normal(mask.shape) - 1.5 + rng.uniform(0.5, 3) * mask
        images.append(JudgedMap.of((1 / (1 + np.exp(-logits))).astype(np.float32), mask, not mask.any()))
    return images


@pytest.mark.parametrize("noise", [0.01, 0.8])
def test_pixel_figures_of_weights_are_those_of_repeated_images(noise: float) -> None:
    images = judged_images(noise)
    weighted = weighted_pixel_figures(images, *exact_counts(images))
    labels = np.array([0, 1] * 6)
    weights = next(resampled_weights(labels, np.random.default_rng(6), 12))
    found = weighted(weights)
    for number, times in enumerate(weights.astype(int)):
        repeated = [image for image, count in zip(images, times, strict=True) for _ in range(count)]
        exact = {name: float(value) for name, value in pixel_figures(exact_counts(repeated)[1]).items()}
        assert {name: value[number] for name, value in found.items()} == pytest.approx(exact, abs=5e-3)


def test_few_distinct_values_are_resampled_exactly() -> None:
    rng = np.random.default_rng(7)
    images = [
        JudgedMap.of(rng.integers(0, 6, (9, 9)).astype(np.float32) / 8, mask, not mask.any())
        for mask in [rng.random((9, 9)) < share for share in (0, 0.2, 0, 0.4, 0.3)]
    ]
    weights = np.array([[2.0, 1, 0, 0, 2], [1, 0, 1, 3, 0]])
    found = weighted_pixel_figures(images, *exact_counts(images))(weights)
    for number, times in enumerate(weights.astype(int)):
        repeated = [image for image, count in zip(images, times, strict=True) for _ in range(count)]
        exact = {name: float(value) for name, value in pixel_figures(exact_counts(repeated)[1]).items()}
        assert {name: value[number] for name, value in found.items()} == pytest.approx(exact, abs=1e-9)


def test_levels_are_few_and_share_the_pixels_out() -> None:
    images = judged_images(0.8, 40)
    values, counts = exact_counts(images)
    edges = level_edges(values, counts)
    assert values.size > 5 * edges.size
    assert 300 < edges.size < 1024
    assert (np.diff(edges) > 0).all()
    for part in ([image.good for image in images], [image.defect for image in images]):
        pixels = np.concatenate(part)
        shares = np.bincount(np.searchsorted(edges, pixels, "right")) / pixels.size
        assert shares.max() < 0.02


# intervals


def test_intervals_are_repeatable_and_hold_the_middle_95_per_cent() -> None:
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1], 40)
    scores = rng.random(80) * 0.6 + 0.2 * labels
    low, high = auroc_interval(scores, labels, seed=1)
    assert (low, high) == auroc_interval(scores, labels, seed=1)
    assert (low, high) != auroc_interval(scores, labels, seed=2)
    weighted = weighted_image_figures(scores, labels)
    drawn = np.concatenate(
        [weighted(block)["image_auroc"] for block in resampled_weights(labels, np.random.default_rng(1), 300)]
    )
    assert ((low <= drawn) & (drawn <= high)).mean() == pytest.approx(0.95, abs=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Normal scores a unit apart have an AUROC of Phi(1 / sqrt 2)."""
    truth = (1 + math.erf(0.5)) / 2
    labels = np.repeat([0, 1], [50, 60])
    covered = 0
    for seed in range(200):
        logits = np.random.default_rng(1000 + seed).standard_normal(110) + labels
        low, high = auroc_interval(1 / (1 + np.exp(-logits)), labels, seed)
        covered += low <= truth <= high
    assert 0.89 * 200 <= covered <= 0.99 * 200


def test_more_images_give_a_narrower_interval() -> None:
    widths = []
    for count in (25, 400):
        labels = np.repeat([0, 1], count)
        logits = np.random.default_rng(9).standard_normal(2 * count) + labels
        low, high = auroc_interval(1 / (1 + np.exp(-logits)), labels, seed=0)
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 1, 1], [0, 0, 0, 1], [1]])
def test_a_single_image_of_a_kind_has_no_interval(labels: list[int]) -> None:
    scores = np.linspace(0.1, 0.9, len(labels))
    weighted = weighted_image_figures(scores, np.array(labels))
    assert intervals({"image_auroc": 0.5}, weighted, np.array(labels), np.random.default_rng(0)) == {}


def test_what_the_levels_add_is_taken_off_and_intervals_stay_within_the_scale() -> None:
    labels = np.repeat([0, 1], 20)
    scores = np.random.default_rng(10).random(40) + 0.4 * labels
    weighted = weighted_image_figures(scores, labels)
    exact = float(weighted(np.ones((1, 40)))["image_auroc"][0])
    generators = [np.random.default_rng(0) for _ in range(3)]
    low, high = intervals({"image_auroc": exact}, weighted, labels, generators[0])["image_auroc"]
    moved = intervals({"image_auroc": exact - 0.05}, weighted, labels, generators[1])["image_auroc"]
    assert moved == pytest.approx((low - 0.05, high - 0.05))
    assert intervals({"image_auroc": 1.0}, weighted, labels, generators[2])["image_auroc"][1] == 1.0
