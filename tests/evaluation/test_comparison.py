"""P-values of normal images are uniform, and every figure of a comparison equals one computed another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cflow_ray.evaluation.comparison import (
    alarm_p_value,
    compare,
    holm_level,
    promised_interval,
    reach_of,
    share_interval,
)
from cflow_ray.model.scoring import Calibration
from tests.days import Array, most_likely, normal_days, scores_of

# p-values


def p_values(rng: np.random.Generator, kind: str, shift: float = 0.0) -> Array:
    """Of 4,000 images, each beside a calibration of 19 of its own."""
    drawn = {"normal": rng.standard_normal, "skewed": rng.exponential, "flat": rng.random}[kind](size=(4000, 20))
    return np.array([Calibration.of([0.0], row[1:]).p_value(row[0] + shift) for row in drawn])


@pytest.mark.parametrize("kind", ["normal", "skewed", "flat"])
def test_p_values_of_normal_images_are_uniform(kind: str) -> None:
    ranks = np.rint(20 * p_values(np.random.default_rng(1), kind)).astype(int)
    counts = np.bincount(ranks, minlength=21)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-3
    for target in range(1, 20):
        low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 4000, target / 20)
        assert low <= counts[: target + 1].sum() <= high


def test_the_test_of_uniformity_finds_p_values_that_are_not() -> None:
    ranks = np.rint(20 * p_values(np.random.default_rng(1), "normal", 0.2)).astype(int)
    assert stats.chisquare(np.bincount(ranks, minlength=21)[1:]).pvalue < 1e-6


def test_alarms_of_normal_days_vary_as_the_calibrations_luck_and_the_days_say() -> None:
    """Shares of a calibration's alarms are Beta(2, 38) at a target of 5 % of 39 images, so counts are beta-binomial."""
    alarms = [day.alarms for day in normal_days(1500, 39, 50, seed=2)]
    expected = stats.betabinom(50, 2, 38).pmf(np.arange(8)) * 1500
    counts = np.bincount(np.minimum(alarms, 8), minlength=9)
    assert stats.chisquare(counts, [*expected, 1500 - expected.sum()]).pvalue > 1e-3
    naive = stats.binom(50, 0.05).pmf(np.arange(8)) * 1500
    assert stats.chisquare(counts, [*naive, 1500 - naive.sum()]).pvalue < 1e-6


# figures against independent ones


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 3000), share=st.floats(0, 1))
def test_shares_have_clopper_and_pearsons_interval(total: int, share: float) -> None:
    count = round(share * total)
    oracle = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    assert share_interval(count, total) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 400), share=st.floats(0, 1), calibration=st.integers(1, 300), target=st.floats(0.001, 0.999)
)
def test_the_chance_of_alarms_is_the_beta_binomials(images: int, share: float, calibration: int, target: float) -> None:
    rank = Calibration.of([0.0], range(calibration)).rank(target)
    alarms = round(share * images)
    found = alarm_p_value(alarms, images, rank, calibration)
    terms = stats.betabinom(images, rank, calibration + 1 - rank).pmf(np.arange(alarms, images + 1)) if rank else [1.0]
    assert found == pytest.approx(sum(terms), rel=1e-6, abs=1e-12)


def test_the_promise_of_one_calibration_lies_in_its_interval_95_times_of_100() -> None:
    low, high = promised_interval(5, 99)
    covered = [
        low <= 1 - stats.norm.cdf(np.sort(np.random.default_rng(seed).standard_normal(99))[-5]) <= high
        for seed in range(1000)
    ]
    assert sum(covered) == pytest.approx(950, abs=25)
    assert promised_interval(0, 8) == (0.0, 0.0)


@settings(max_examples=80, deadline=None)
@given(
    calibration=st.lists(st.sampled_from(np.linspace(0, 1, 15).tolist()), min_size=1, max_size=30),
    day=st.lists(st.sampled_from(np.linspace(0, 1, 31).tolist()), min_size=1, max_size=60),
)
def test_levels_lose_nothing_that_the_statistics_need(calibration: list[float], day: list[float]) -> None:
    found = compare(scores_of(np.array(calibration), np.array(day)), 0.1)
    oracle = stats.ks_2samp(day, calibration)
    assert (found.distance, found.p_value) == pytest.approx((oracle.statistic, oracle.pvalue))
    limit = sorted(calibration)[math.ceil(0.9 * len(calibration)) - 1]
    below, calibration_below = [s for s in day if s < limit], [c for c in calibration if c < limit]
    assert found.above_bulk == pytest.approx(1 - len(below) / len(day))
    if below and calibration_below:
        bulk = stats.ks_2samp(below, calibration_below)
        assert (found.bulk_distance, found.bulk_p_value) == pytest.approx((bulk.statistic, bulk.pvalue))
    else:
        assert (found.bulk_distance, found.bulk_p_value) == (0.0, 1.0)
    p_values = [(1 + sum(c >= score for c in calibration)) / (1 + len(calibration)) for score in day]
    assert found.alarms == sum(p_value <= 0.05 for p_value in p_values)
    assert found.promised == math.floor(0.05 * (len(calibration) + 1)) / (len(calibration) + 1)


@pytest.mark.parametrize(
    ("day", "rank"), [([0.5], 0.5), ([0.0], 0.0), ([0.9], 1.0), ([0.1, 0.35], 0.125), ([0.1, 0.2, 0.9], 0.125)]
)
def test_the_median_is_told_by_its_rank_among_the_calibration_scores(day: list[float], rank: float) -> None:
    calibration = np.array([0.2, 0.4, 0.6, 0.8])
    assert compare(scores_of(calibration, np.array(day)), 0.1).median_rank == rank


@pytest.mark.parametrize(("images", "calibration_images"), [(200, 40), (60, 60), (30, 300)])
def test_samples_of_one_distribution_stay_within_reach(images: int, calibration_images: int) -> None:
    found = [compare(day, 0.0) for day in normal_days(400, calibration_images, images, seed=3)]
    reach = reach_of(0.05, images, calibration_images)
    assert sum(one.distance >= reach for one in found) <= most_likely(400, 0.05)
    assert sum(one.shift_p_value <= 0.05 for one in found) == sum(one.distance >= reach for one in found)
    assert sum(one.bulk_p_value <= 0.05 for one in found) <= most_likely(400, 0.05)
    assert sum(one.bulk_p_value <= 0.05 for one in found) >= 4


@settings(max_examples=200, deadline=None)
@given(p_values=st.lists(st.sampled_from([0.0, 1e-4, 0.001, 0.002, 0.003, 0.004, 0.005, 0.008, 0.01, 0.02, 1.0])))
def test_holms_level_rejects_what_his_procedure_does(p_values: list[float]) -> None:
    rejected: set[int] = set()
    for step, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[number] > 0.01 / (len(p_values) - step):
            break
        rejected.add(number)
    level = holm_level(p_values, 0.01)
    assert {number for number, p_value in enumerate(p_values) if p_value <= level} == rejected
