"""Figures of localisation equal scikit-learn's and torchmetrics' over all pixels, or their definition per threshold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import skimage.measure
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from cflow_ray.evaluation import ranking
from cflow_ray.evaluation.pixels import JudgedMap, PixelCounts, exact_counts, pixel_figures

Maps = Sequence[NDArray[np.float32]]
Masks = Sequence[NDArray[np.bool_]]
Inspection = Callable[..., tuple[Maps, Masks]]

NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro", "aupro_005", "aupimo")
# Few distinct values, so that ties are common; both ends of what a map can hold.
VALUES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1 - 2**-24, 1.0])


def counts_of(maps: Maps, masks: Masks) -> PixelCounts:
    """An image without mask is a normal one here."""
    judged = [JudgedMap.of(one, mask, not mask.any()) for one, mask in zip(maps, masks, strict=True)]
    return exact_counts(judged)[1]


def figures_of(maps: Maps, masks: Masks) -> dict[str, float]:
    return {name: float(value) for name, value in pixel_figures(counts_of(maps, masks)).items()}


def some_maps(size: tuple[int, int, int] = (3, 5, 6)) -> st.SearchStrategy[NDArray[np.float32]]:
    return npst.arrays(np.float32, st.just(size), elements=VALUES)


def some_masks(size: tuple[int, int, int] = (3, 5, 6)) -> st.SearchStrategy[NDArray[np.bool_]]:
    return npst.arrays(np.bool_, st.just(size), elements=st.sampled_from([False, False, True])).filter(
        lambda masks: 0 < masks.sum() < masks.size
    )


# over all pixels


@settings(deadline=None, max_examples=200)
@given(maps=some_maps(), masks=some_masks())
def test_pixel_figures_are_scikit_learns_over_all_pixels(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> None:
    found = figures_of(list(maps), list(masks))
    values, truth = maps.ravel(), masks.ravel()
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-9)
    assert found["pixel_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-9)
    best = max(f1_score(truth, values >= threshold) for threshold in np.unique(values))
    assert found["pixel_f1"] == pytest.approx(best, abs=1e-9)


def test_many_untied_pixels_are_scikit_learns_and_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((4, 300, 300)) < 0.01
    maps = np.clip(rng.normal(0.3, 0.1, truth.shape) + 0.2 * truth, 0, 0.999).astype(np.float32)
    found = figures_of(list(maps), list(truth))
    precision, recall, _ = precision_recall_curve(truth.ravel(), maps.ravel())
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth.ravel(), maps.ravel()), abs=1e-9)
    assert found["pixel_ap"] == pytest.approx(average_precision_score(truth.ravel(), maps.ravel()), abs=1e-9)
    assert found["pixel_f1"] == pytest.approx(np.max(2 * precision * recall / (precision + recall + 1e-15)), abs=1e-9)
    scores, labels = torch.from_numpy(maps.ravel()), torch.from_numpy(truth.ravel().astype(np.int64))
    assert found["pixel_auroc"] == pytest.approx(float(binary_auroc(scores, labels)), abs=1e-5)
    assert found["pixel_ap"] == pytest.approx(float(binary_average_precision(scores, labels)), abs=1e-5)


# AUPRO


def regions_of(masks: Masks) -> list[tuple[int, NDArray[np.bool_]]]:
    labelled = [skimage.measure.label(mask, connectivity=2) for mask in masks]
    return [(number, one == label) for number, one in enumerate(labelled) for label in range(1, one.max() + 1)]


def aupro_by_definition(maps: Maps, masks: Masks, limit: float) -> float:
    """For every distinct value as threshold: mean overlap of the regions against the rate over good pixels."""
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for one in maps for value in one.ravel()}, reverse=True):
        above = [one >= threshold for one in maps]
        false = sum(int((flags & ~mask).sum()) for flags, mask in zip(above, masks, strict=True))
        overlap = np.mean([above[number][region].mean() for number, region in regions_of(masks)])
        points.append((false / sum(int((~mask).sum()) for mask in masks), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@settings(deadline=None, max_examples=150)
@given(maps=some_maps(), masks=some_masks())
def test_aupro_is_its_definition(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> None:
    found = figures_of(list(maps), list(masks))
    assert found["aupro"] == pytest.approx(aupro_by_definition(list(maps), list(masks), 0.3), abs=1e-9)
    assert found["aupro_005"] == pytest.approx(aupro_by_definition(list(maps), list(masks), 0.05), abs=1e-9)


def test_aupro_of_untied_maps_is_its_definition(inspection: Inspection) -> None:
    maps, masks = ([one[::3, ::3] for one in part] for part in inspection())
    found = figures_of(maps, masks)
    assert 0.1 < found["aupro_005"] < found["aupro"] < 0.999
    assert found["aupro"] == pytest.approx(aupro_by_definition(maps, masks, 0.3), abs=1e-9)
    assert found["aupro_005"] == pytest.approx(aupro_by_definition(maps, masks, 0.05), abs=1e-9)


def test_every_region_weighs_the_same_whatever_its_size() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:32, 2:32] = True  # 900 pixels, found
    mask[36, 36] = mask[37, 37] = True  # two pixels that touch at a corner: one region, missed
    found = np.where(np.arange(40)[:, None] < 34, mask, False).astype(np.float32) * 0.5
    assert figures_of([found], [mask])["aupro"] == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-6)


# AUPIMO


def aupimo_by_definition(maps: Maps, masks: Masks, low: float, high: float) -> float:
    """Per image with a defect, step by step over rates: what the lowest threshold finds that the rate allows."""
    normals = [one for one, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = sorted({float(value) for one in maps for value in one.ravel()} | {2.0}, reverse=True)
    rates = [float(np.mean([(one >= threshold).mean() for one in normals])) for threshold in thresholds]
    stops = sorted({low, high} | {rate for rate in rates if low < rate < high})
    of_images = []
    for one, mask in zip(maps, masks, strict=True):
        if mask.any():
            area = 0.0
            for start, end in itertools.pairwise(stops):
                lowest = min(t for t, rate in zip(thresholds, rates, strict=True) if rate <= start * (1 + 1e-12))
                area += float((one[mask] >= lowest).mean()) * math.log(end / start)
            of_images.append(area / math.log(high / low))
    return float(np.mean(of_images))


@settings(deadline=None, max_examples=150)
@given(
    maps=some_maps((4, 5, 6)),
    masks=some_masks((2, 5, 6)),
    bounds=st.sampled_from([(1e-5, 1e-4), (0.01, 0.5), (0.05, 0.9)]),
)
def test_aupimo_is_its_definition(
    maps: NDArray[np.float32], masks: NDArray[np.bool_], bounds: tuple[float, float]
) -> None:
    normal_masks = np.zeros_like(masks)
    both = [*masks, *normal_masks]
    counts = counts_of(list(maps), both)
    expected = aupimo_by_definition(list(maps), both, *bounds)
    assert ranking.log_area(counts.normal, counts.found, *bounds) == pytest.approx(expected, abs=1e-9)
    if bounds == (1e-5, 1e-4):
        assert pixel_figures(counts)["aupimo"] == pytest.approx(expected, abs=1e-9)


def test_normal_images_of_different_sizes_weigh_the_same_in_aupimo() -> None:
    rng = np.random.default_rng(2)
    sizes = ((5, 6), (9, 4), (20, 11), (7, 7), (12, 12))
    maps = [rng.random(size, dtype=np.float32) for size in sizes]
    masks = [np.zeros(size, bool) for size in sizes]
    masks[3][2:5, 1:4] = masks[4][:, 5:7] = masks[4][0, 0] = True
    for bounds in ((0.01, 0.1), (0.002, 0.7)):
        counts = counts_of(maps, masks)
        found = ranking.log_area(counts.normal, counts.found, *bounds)
        assert found == pytest.approx(aupimo_by_definition(maps, masks, *bounds), abs=1e-9)


def test_aupimo_of_many_pixels_is_the_papers_integral_over_a_grid_of_thresholds() -> None:
    """As its authors' code: trapezoids over the logarithm of the rates at many thresholds."""
    rng = np.random.default_rng(1)
    normals, defects = 0.2 + 0.05 * rng.standard_normal((10, 500, 500)), 0.3 + 0.05 * rng.standard_normal((6, 90, 90))
    defects += 0.04 * np.arange(6)[:, None, None]
    masks = [np.zeros((500, 500), bool)] * 10 + [np.ones((90, 90), bool)] * 6
    maps = [one.astype(np.float32) for one in (*normals, *defects)]
    pool = np.sort(np.stack(maps[:10]), axis=None)
    thresholds = np.linspace(pool[-300], pool[-10], 20_000)
    rates = 1 - np.searchsorted(pool, thresholds) / pool.size
    inside = (rates >= 1e-5) & (rates <= 1e-4)
    scale = np.log(rates[inside])[::-1]
    areas = []
    for defect in maps[10:]:
        found = 1 - np.searchsorted(np.sort(defect, axis=None), thresholds[inside])[::-1] / defect.size
        areas.append(np.trapezoid(found, scale) / (scale[-1] - scale[0]))
    assert 0.2 < np.mean(areas) < 0.8
    assert figures_of(maps, masks)["aupimo"] == pytest.approx(np.mean(areas), abs=5e-3)


def test_an_anomalous_image_without_defect_pixels_counts_for_neither_side_of_aupimo() -> None:
    rng = np.random.default_rng(4)
    maps = [rng.random((30, 30), dtype=np.float32) for _ in range(3)]
    masks = [np.zeros((30, 30), bool) for _ in range(3)]
    masks[0][3:9, 3:9] = True
    maps[0][3:9, 3:9] += 2 * maps[1].max()
    judged = [
        JudgedMap.of(one, mask, normal) for one, mask, normal in zip(maps, masks, (False, True, False), strict=True)
    ]
    hidden = JudgedMap.of(np.full((30, 30), 5.0, np.float32), masks[2], normal=False)
    for third in (judged[2], hidden):
        counts = exact_counts([judged[0], judged[1], third])[1]
        assert counts.normal.sum() == pytest.approx(1)
        assert counts.found.sum() == pytest.approx(1)
        assert pixel_figures(counts)["aupimo"] == 1.0


# ends of the scale


def test_perfect_maps_score_one_and_inverted_maps_nothing(inspection: Inspection) -> None:
    _, masks = inspection()
    perfect = [0.9 * mask.astype(np.float32) for mask in masks]
    assert figures_of(perfect, masks) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    inverted = figures_of([np.float32(0.9) - one for one in perfect], masks)
    share = np.mean(np.stack(masks))
    assert inverted["pixel_ap"] == pytest.approx(share)
    assert inverted["pixel_f1"] == pytest.approx(2 * share / (1 + share))
    for name in ("pixel_auroc", "aupro", "aupro_005", "aupimo"):
        assert inverted[name] == pytest.approx(0, abs=1e-9)


def test_maps_that_know_nothing_score_what_chance_scores(inspection: Inspection) -> None:
    """Overlap equals the false-positive rate: area 0.3^2 / 2 over 0.3. A constant map is the same line."""
    rng = np.random.default_rng(1)
    _, masks = inspection(size=(120, 150))
    random = figures_of([rng.random(mask.shape, dtype=np.float32) for mask in masks], masks)
    assert random["aupro"] == pytest.approx(0.15, abs=0.03)
    assert random["aupimo"] < 1e-3
    constant = figures_of([np.full(mask.shape, 0.5, np.float32) for mask in masks], masks)
    share = np.mean(np.stack(masks))
    assert constant == pytest.approx(
        {
            "pixel_auroc": 0.5,
            "pixel_ap": share,
            "pixel_f1": 2 * share / (1 + share),
            "aupro": 0.15,
            "aupro_005": 0.025,
            "aupimo": 0.0,
        }
    )


@settings(deadline=None)
@given(maps=some_maps(), masks=some_masks(), order=st.permutations(range(3)))
def test_order_of_images_and_monotone_change_of_values_mean_nothing(
    maps: NDArray[np.float32], masks: NDArray[np.bool_], order: list[int]
) -> None:
    assume(len(np.unique(np.sqrt(maps))) == len(np.unique(maps)))
    shuffled = [np.sqrt(maps[number]) for number in order], [masks[number] for number in order]
    assert figures_of(*shuffled) == pytest.approx(figures_of(list(maps), list(masks)), abs=1e-12, nan_ok=True)
