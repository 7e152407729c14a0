"""Figures from counts equal scikit-learn's on what was counted, or their definition followed step by step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from cflow_ray.evaluation import ranking

# Few levels of few: ties, empty levels, and levels of one kind alone are all common.
LEVELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=8).filter(
    lambda rows: sum(good for good, _ in rows) > 0 and sum(defect for _, defect in rows) > 0
)


def counts(rows: list[tuple[int, int]]) -> tuple[ranking.Counts, ranking.Counts]:
    good, defect = np.array(rows, dtype=float).T
    return good, defect


def scored(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels that the counts are of."""
    pairs = [(-k, label) for k, row in enumerate(rows) for label in (0, 1) for _ in range(row[label])]
    scores, labels = np.array(pairs).T
    return scores, labels


@settings(deadline=None)
@given(rows=LEVELS)
def test_auroc_average_precision_and_best_f1_are_scikit_learns(rows: list[tuple[int, int]]) -> None:
    (good, defect), (scores, labels) = counts(rows), scored(rows)
    assert ranking.auroc(good, defect) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert ranking.average_precision(good, defect) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    best = max(f1_score(labels, scores >= threshold) for threshold in np.unique(scores))
    assert ranking.f1_max(good, defect) == pytest.approx(best, abs=1e-12)


@settings(deadline=None)
@given(rows=LEVELS, limit=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 1.0]))
def test_rate_within_a_bound_is_that_of_scikit_learns_curve(rows: list[tuple[int, int]], limit: float) -> None:
    scores, labels = scored(rows)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = true[false <= limit + 1e-9].max()
    assert ranking.tpr_at_fpr(*counts(rows), limit) == pytest.approx(expected, abs=1e-12)


def test_a_rate_that_equals_its_bound_is_within() -> None:
    for good, limit in itertools.product(range(1, 401), (0.01, 0.05, 0.07, 0.29)):
        allowed = (good * round(100 * limit)) // 100  # whole numbers
        passing = np.zeros(good + 1)
        passing[allowed] = 1
        singles = np.ones(good + 1)
        singles[-1] = 0
        # The one defect comes with the good image number `allowed`, the first beyond the bound; then just before it.
        assert ranking.tpr_at_fpr(singles, passing, limit) == (1.0 if allowed == good else 0.0)
        if allowed:
            assert ranking.tpr_at_fpr(singles, np.roll(passing, -1), limit) == 1.0


@settings(deadline=None)
@given(rows=LEVELS, limit=st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_area_up_to_a_rate_is_that_of_the_polygon(rows: list[tuple[int, int]], limit: float) -> None:
    good, gain = counts(rows)
    points = [(0.0, 0.0), *zip(good.cumsum() / good.sum(), gain.cumsum() / gain.sum(), strict=True)]
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    assert ranking.area_up_to(good, gain, limit) == pytest.approx(area / limit, abs=1e-12)


def log_area_by_definition(rows: list[tuple[int, int]], low: float, high: float) -> float:
    """Between every two rates that some threshold has, the lowest threshold allowed finds the same."""
    normal, gain = counts(rows)
    thresholds = [(0.0, 0.0), *zip(normal.cumsum() / normal.sum(), gain.cumsum() / gain.sum(), strict=True)]
    stops = sorted({low, high} | {rate for rate, _ in thresholds if low < rate < high})
    area = 0.0
    for start, end in itertools.pairwise(stops):
        found = max(share for rate, share in thresholds if rate <= start)
        area += found * (math.log(end) - math.log(start))
    return area / (math.log(high) - math.log(low))


@settings(deadline=None)
@given(rows=LEVELS, bounds=st.sampled_from([(1e-5, 1e-4), (0.01, 0.1), (0.1, 0.9), (0.3, 1.0)]))
def test_area_over_logarithmic_rates_is_its_definition(
    rows: list[tuple[int, int]], bounds: tuple[float, float]
) -> None:
    assert ranking.log_area(*counts(rows), *bounds) == pytest.approx(log_area_by_definition(rows, *bounds), abs=1e-12)


@settings(deadline=None)
@given(rows=LEVELS, data=st.data())
def test_the_floor_is_below_the_average_precision_of_every_order_inside_the_levels(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    inside: list[tuple[int, int]] = []
    for good, defect in rows:
        singles = data.draw(st.permutations([(1, 0)] * good + [(0, 1)] * defect))
        split = data.draw(st.integers(0, len(singles)))
        tied, rest = singles[:split], singles[split:]
        inside += [(sum(one[0] for one in tied), sum(one[1] for one in tied)), *rest]
    assert ranking.average_precision_floor(*counts(rows)) <= ranking.average_precision(*counts(inside)) + 1e-12


def test_the_floor_of_fine_levels_is_the_average_precision() -> None:
    rng = np.random.default_rng(0)
    good, defect = rng.integers(0, 2, 4000).astype(float), np.zeros(4000)
    defect[rng.permutation(4000)[:300]] = 1
    good[defect == 1] = 0
    exact = ranking.average_precision(good, defect)
    assert exact - 2e-3 < ranking.average_precision_floor(good, defect) <= exact


@settings(deadline=None)
@given(rows=LEVELS)
def test_rankings_side_by_side_are_each_judged_alone(rows: list[tuple[int, int]]) -> None:
    good, defect = counts(rows)
    good_RK, defect_RK = np.stack([good, good[::-1]]), np.stack([defect, defect[::-1]])
    for figure in (ranking.auroc, ranking.average_precision, ranking.f1_max, ranking.average_precision_floor):
        np.testing.assert_allclose(
            figure(good_RK, defect_RK), [figure(good, defect), figure(good[::-1], defect[::-1])], atol=1e-12
        )


def test_what_the_counts_do_not_allow_is_not_a_number() -> None:
    some, none = np.array([1.0, 2.0]), np.zeros(2)
    assert np.isnan(ranking.auroc(some, none))
    assert np.isnan(ranking.auroc(none, some))
    assert np.isnan(ranking.average_precision(some, none))
    assert np.isnan(ranking.f1_max(none, none))
    assert np.isnan(ranking.area_up_to(some, none, 0.3))
    assert np.isnan(ranking.log_area(none, some, 1e-5, 1e-4))
    assert np.isnan(ranking.log_area(some, none, 1e-5, 1e-4))
