"""Every figure equals scikit-learn's, or for AUPRO the definition followed threshold by threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import skimage.measure
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from cflow_ray.evaluation.metrics import Metrics, aupro, auroc, compute_metrics, f1_max

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]

# Few distinct values, so that ties are common.
VALUES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1 - 2**-24])


def scored_labels() -> st.SearchStrategy[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    pairs = st.lists(st.tuples(VALUES, st.integers(0, 1)), min_size=2, max_size=40)
    return pairs.map(lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows])))


@settings(deadline=None)
@given(data=scored_labels())
def test_auroc_is_scikit_learns(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, labels = data
    assume(0 < labels.sum() < len(labels))
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert auroc(1 - 2**-24 - scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-6)


@settings(deadline=None)
@given(data=scored_labels())
def test_f1_max_is_the_best_of_all_thresholds(data: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    scores, labels = data
    assume(labels.sum() > 0)
    best = max(f1_score(labels, scores >= threshold) for threshold in np.unique(scores))
    assert f1_max(scores, labels) == pytest.approx(best, abs=1e-6)


def test_many_pixels_in_single_precision_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400_000) < 0.01
    scores = np.clip(rng.normal(0.3, 0.1, truth.shape) + 0.2 * truth, 0, 0.999).astype(np.float32)
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    assert f1_max(scores, truth) == pytest.approx(best, abs=1e-6)


# AUPRO


def aupro_by_definition(maps: Maps, masks: Masks, limit: float) -> float:
    """For every distinct value as threshold: mean overlap of the regions against the rate over ok pixels."""
    regions = [
        (number, skimage.measure.label(mask, connectivity=2) == label)
        for number, mask in enumerate(masks)
        for label in range(1, skimage.measure.label(mask, connectivity=2).max() + 1)
    ]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for one in maps for value in one.ravel()}, reverse=True):
        above = [one >= threshold for one in maps]
        false = sum(int((flags & ~mask).sum()) for flags, mask in zip(above, masks, strict=True))
        overlap = np.mean([above[number][region].mean() for number, region in regions])
        points.append((false / sum(int((~mask).sum()) for mask in masks), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@settings(deadline=None, max_examples=200)
@given(
    maps=npst.arrays(np.float32, st.just((3, 5, 6)), elements=VALUES),
    masks=npst.arrays(np.bool_, st.just((3, 5, 6)), elements=st.sampled_from([False, False, True])),
    limit=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_aupro_is_its_definition(maps: NDArray[np.float32], masks: NDArray[np.bool_], limit: float) -> None:
    assume(0 < masks.sum() < masks.size)
    assert aupro(list(maps), list(masks), limit) == pytest.approx(
        aupro_by_definition(list(maps), list(masks), limit), abs=1e-9
    )


def inspection(seed: int = 0, size: tuple[int, int] = (40, 50)) -> tuple[Maps, Masks]:
    """Maps that find the defects of six images in part; two images are good, one has two defects."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(6):
        mask = np.zeros(size, dtype=bool)
        if number >= 2:
            mask[5 : 9 + 4 * number, 10 : 12 + number] = True
        if number == 3:
            mask[30:34, 30:45] = True
        maps.append(np.clip(0.2 + 0.1 * rng.standard_normal(size) + 0.25 * mask, 0, 0.999).astype(np.float32))
        masks.append(mask)
    return maps, masks


def test_aupro_of_untied_maps_is_its_definition() -> None:
    maps, masks = ([one[::3, ::3] for one in part] for part in inspection())
    assert 0.4 < aupro(maps, masks) < 0.999
    assert aupro(maps, masks) == pytest.approx(aupro_by_definition(maps, masks, 0.3), abs=1e-9)


def test_perfect_maps_score_one_and_inverted_maps_zero() -> None:
    _, masks = inspection()
    perfect: Maps = [0.9 * mask.astype(np.float32) for mask in masks]
    inverted: Maps = [np.float32(0.9) - one for one in perfect]
    assert aupro(perfect, masks) == pytest.approx(1)
    assert auroc(np.stack(perfect).ravel(), np.stack(masks).ravel()) == pytest.approx(1)
    assert f1_max(np.stack(perfect).ravel(), np.stack(masks).ravel()) == pytest.approx(1)
    assert aupro(inverted, masks) == pytest.approx(0, abs=1e-9)
    assert auroc(np.stack(inverted).ravel(), np.stack(masks).ravel()) == pytest.approx(0, abs=1e-6)


def test_maps_that_know_nothing_score_what_chance_scores() -> None:
    """Overlap equals the false-positive rate: area 0.3^2 / 2 over 0.3. A constant map is the same line."""
    rng = np.random.default_rng(1)
    _, masks = inspection(size=(120, 150))
    random: Maps = [rng.random(mask.shape, dtype=np.float32) for mask in masks]
    assert aupro(random, masks) == pytest.approx(0.15, abs=0.03)
    constant: Maps = [np.full(mask.shape, 0.5, np.float32) for mask in masks]
    assert aupro(constant, masks) == pytest.approx(0.15)
    assert auroc(np.stack(constant).ravel(), np.stack(masks).ravel()) == pytest.approx(0.5)


def test_every_region_weighs_the_same_whatever_its_size() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:32, 2:32] = True  # 900 pixels, found
    mask[36, 36] = mask[37, 37] = True  # two pixels that touch at a corner: one region, missed
    found = np.where(np.arange(40)[:, None] < 34, mask, False).astype(np.float32) * 0.5
    assert aupro([found], [mask]) == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-6)


# all figures of a category


def test_figures_of_a_category_are_those_of_its_parts() -> None:
    maps, masks = inspection()
    scores = [float(one.max()) for one in maps]
    labels = [int(mask.any()) for mask in masks]
    metrics = compute_metrics(scores, labels, maps, masks)
    values, truth = np.stack(maps).ravel(), np.stack(masks).ravel()
    assert metrics.images == 6
    assert metrics.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert metrics.image_f1 == pytest.approx(max(f1_score(labels, scores >= t) for t in np.array(scores)), abs=1e-6)
    assert metrics.pixel_auroc == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    thresholds = np.quantile(values, np.linspace(0.8, 0.999, 50))
    coarse = max(f1_score(truth, values >= threshold) for threshold in thresholds)
    assert metrics.pixel_f1 is not None
    assert coarse - 1e-6 <= metrics.pixel_f1 <= coarse + 0.02
    assert metrics.aupro == aupro(maps, masks)


def test_images_of_different_sizes_can_be_judged_together() -> None:
    (maps, masks), (small_maps, small_masks) = inspection(), inspection(1, (38, 47))
    labels = [int(mask.any()) for mask in masks + small_masks]
    metrics = compute_metrics([0.5 * label for label in labels], labels, maps + small_maps, masks + small_masks)
    assert metrics.image_auroc == 1
    assert metrics.aupro == aupro(maps + small_maps, masks + small_masks)


@pytest.mark.parametrize("label", [0, 1])
def test_one_kind_of_image_alone_has_no_figures(label: int) -> None:
    masks: Masks = [np.zeros((4, 4), bool)] * 3
    maps: Maps = [np.zeros((4, 4), np.float32)] * 3
    assert compute_metrics([0.1, 0.2, 0.3], [label] * 3, maps, masks) == Metrics(images=3)
    assert compute_metrics([], [], [], []) == Metrics(images=0)


def test_a_missing_map_or_mask_leaves_the_image_figures_alone() -> None:
    maps, masks = inspection()
    scores, labels = [float(one.max()) for one in maps], [int(mask.any()) for mask in masks]
    whole = compute_metrics(scores, labels, maps, masks)
    image_only = Metrics(image_auroc=whole.image_auroc, image_f1=whole.image_f1, images=6)
    assert compute_metrics(scores, labels, [None, *maps[1:]], masks) == image_only
    assert compute_metrics(scores, labels, maps, [*masks[:-1], None]) == image_only
    assert compute_metrics(scores, labels, [None] * 6, [None] * 6) == image_only
    empty: Masks = [np.zeros_like(mask) for mask in masks]
    assert compute_metrics(scores, labels, maps, empty) == image_only  # defects that no mask shows


def test_figures_by_name_are_ready_for_json() -> None:
    figures = compute_metrics([0.1, 0.2], [0, 1], [None, None], [None, None]).as_dict()
    assert figures == {
        "image_auroc": 1.0,
        "image_f1": 1.0,
        "pixel_auroc": None,
        "pixel_f1": None,
        "aupro": None,
        "images": 2,
    }
    assert type(figures["image_auroc"]) is float
