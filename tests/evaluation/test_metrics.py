"""Image figures equal scikit-learn's, a category's figures are those of its parts, and they survive a manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from cflow_ray.evaluation.figures import FIGURES, Metrics
from cflow_ray.evaluation.metrics import compute_metrics, image_figures
from cflow_ray.evaluation.pixels import JudgedMap, exact_counts, pixel_figures

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]
Scored = list[tuple[float, int]]
Inspection = Callable[..., tuple[Maps, Masks]]

IMAGE_FIGURES = tuple(name for name in FIGURES if name.startswith("image"))
PIXEL_FIGURES = tuple(name for name in FIGURES if not name.startswith("image"))

# Few distinct values, so that ties are common.
VALUES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1 - 2**-24])


def figures_by_scikit_learn(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "image_auroc": roc_auc_score(labels, scores),
        "image_ap": average_precision_score(labels, scores),
        "image_f1": max(f1_score(labels, scores >= threshold) for threshold in np.unique(scores)),
        "image_tpr_at_fpr_01": true[false <= 0.01 + 1e-9].max(),
        "image_tpr_at_fpr_05": true[false <= 0.05 + 1e-9].max(),
    }


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, st.integers(0, 1)), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
@example(rows=[(0.5, 0), (0.5, 1)])
@example(rows=[(0.25, 1), (0.75, 0)])
def test_image_figures_are_scikit_learns(rows: Scored) -> None:
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    assert image_figures(scores, labels) == pytest.approx(figures_by_scikit_learn(scores, labels), abs=1e-6)


@pytest.mark.parametrize("good", [19, 20, 21, 40, 99, 100, 101, 300, 1000])
def test_rates_that_equal_their_bound_are_within(good: int) -> None:
    """The k highest are good, then comes all that is anomalous: found if k false alarms are allowed, else missed."""
    for percent, name in ((1, "image_tpr_at_fpr_01"), (5, "image_tpr_at_fpr_05")):
        allowed = good * percent // 100
        for above in (allowed, allowed + 1):
            labels = np.repeat([0, 1, 0], [above, 10, good - above])
            found = image_figures(np.linspace(0.99, 0.01, labels.size), labels)[name]
            assert found == (1.0 if above == allowed else 0.0)


# all figures of a category


def labelled(maps: Maps, masks: Masks) -> tuple[list[float], list[int], Maps, Masks]:
    return [float(one.max()) for one in maps], [int(mask.any()) for mask in masks], maps, masks


def exact_pixel_figures(maps: Maps, masks: Masks) -> dict[str, float]:
    judged = [JudgedMap.of(one, mask, not mask.any()) for one, mask in zip(maps, masks, strict=True)]
    return {name: float(value) for name, value in pixel_figures(exact_counts(judged)[1]).items()}


def values(metrics: Metrics, names: tuple[str, ...]) -> dict[str, float | None]:
    return {name: getattr(metrics, name) for name in names}


def test_figures_of_a_category_are_those_of_its_parts(inspection: Inspection) -> None:
    scores, labels, maps, masks = labelled(*inspection())
    metrics = compute_metrics(scores, labels, maps, masks)
    assert metrics.images == 6
    expected = figures_by_scikit_learn(np.array(scores), np.array(labels))
    assert values(metrics, IMAGE_FIGURES) == pytest.approx(expected, abs=1e-6)
    assert values(metrics, PIXEL_FIGURES) == exact_pixel_figures(maps, masks)
    assert metrics.pixel_auroc == pytest.approx(roc_auc_score(np.stack(masks).ravel(), np.stack(maps).ravel()))
    assert metrics.aupro_005 < metrics.aupro


def test_every_figure_has_an_interval_around_it_that_repeats(inspection: Inspection) -> None:
    arguments = labelled(*(one + other for one, other in zip(inspection(), inspection(1), strict=True)))
    metrics = compute_metrics(*arguments)
    assert set(metrics.intervals) == set(FIGURES)
    for name, (low, high) in metrics.intervals.items():
        assert 0 <= low <= getattr(metrics, name) + 1e-6, name
        assert getattr(metrics, name) - 1e-6 <= high <= 1, name
    assert metrics.intervals["pixel_ap"][0] < metrics.intervals["pixel_ap"][1]
    assert compute_metrics(*arguments) == metrics
    assert compute_metrics(*arguments, np.random.default_rng(0)) == metrics
    assert compute_metrics(*arguments, np.random.default_rng(1)) != metrics


def test_images_of_different_sizes_can_be_judged_together(inspection: Inspection) -> None:
    (maps, masks), (small_maps, small_masks) = inspection(), inspection(1, (38, 47))
    _, labels, maps, masks = labelled(maps + small_maps, masks + small_masks)
    metrics = compute_metrics([0.5 * label for label in labels], labels, maps, masks)
    assert metrics.image_auroc == 1
    assert values(metrics, PIXEL_FIGURES) == exact_pixel_figures(maps, masks)


@pytest.mark.parametrize("label", [0, 1])
def test_one_kind_of_image_without_a_defect_shown_has_no_figures(label: int) -> None:
    masks: Masks = [np.zeros((4, 4), bool)] * 3
    maps: Maps = [np.zeros((4, 4), np.float32)] * 3
    assert compute_metrics([0.1, 0.2, 0.3], [label] * 3, maps, masks) == Metrics(images=3)
    assert compute_metrics([], [], [], []) == Metrics(images=0)


def test_anomalous_images_alone_have_the_pixel_figures_that_need_no_normal_image(inspection: Inspection) -> None:
    scores, labels, maps, masks = labelled(*(part[2:] for part in inspection()))
    metrics = compute_metrics(scores, labels, maps, masks)
    assert set(labels) == {1}
    expected = exact_pixel_figures(maps, masks) | {"aupimo": None}
    assert values(metrics, PIXEL_FIGURES) == expected
    assert values(metrics, IMAGE_FIGURES) == dict.fromkeys(IMAGE_FIGURES)
    assert set(metrics.intervals) == set(PIXEL_FIGURES) - {"aupimo"}


def test_masks_that_cover_all_pixels_have_no_pixel_figures() -> None:
    full: Masks = [np.ones((4, 4), bool)] * 3
    maps: Maps = [np.full((4, 4), 0.5, np.float32)] * 3
    assert compute_metrics([0.1, 0.2, 0.3], [1] * 3, maps, full) == Metrics(images=3)


def test_a_missing_map_or_mask_leaves_the_image_figures_alone(inspection: Inspection) -> None:
    scores, labels, maps, masks = labelled(*inspection())
    whole = compute_metrics(scores, labels, maps, masks)
    image_only = dataclasses.replace(
        whole,
        **dict.fromkeys(PIXEL_FIGURES),
        intervals={name: pair for name, pair in whole.intervals.items() if name in IMAGE_FIGURES},
    )
    assert set(image_only.intervals) == set(IMAGE_FIGURES)
    assert compute_metrics(scores, labels, [None, *maps[1:]], masks) == image_only
    assert compute_metrics(scores, labels, maps, [*masks[:-1], None]) == image_only
    assert compute_metrics(scores, labels, [None] * 6, [None] * 6) == image_only
    empty: Masks = [np.zeros_like(mask) for mask in masks]
    assert compute_metrics(scores, labels, maps, empty) == image_only  # defects that no mask shows


# as JSON


def test_figures_by_name_are_flat_and_ready_for_json() -> None:
    figures = compute_metrics([0.1, 0.2], [0, 1], [None, None], [None, None]).as_dict()
    assert figures == dict.fromkeys(IMAGE_FIGURES, 1.0) | dict.fromkeys(PIXEL_FIGURES) | {"images": 2}
    assert type(figures["image_auroc"]) is float


def test_figures_and_intervals_survive_a_manifest(inspection: Inspection) -> None:
    metrics = compute_metrics(*labelled(*inspection()))
    written = json.loads(json.dumps(metrics.as_dict()))
    assert Metrics.from_dict(written) == metrics
    low, high = metrics.intervals["pixel_auroc"]
    assert (written["pixel_auroc_low"], written["pixel_auroc_high"]) == (low, high)
    assert all(value is None or isinstance(value, float | int) for value in written.values())
    assert Metrics.from_dict(Metrics().as_dict()) == Metrics()


def test_figures_of_an_older_release_are_read_and_what_is_new_is_none() -> None:
    older = {"image_auroc": 0.9, "image_f1": 0.8, "pixel_auroc": None, "pixel_f1": None, "aupro": None, "images": 7}
    assert Metrics.from_dict(older) == Metrics(image_auroc=0.9, image_f1=0.8, images=7)
    assert Metrics.from_dict({}) == Metrics()
