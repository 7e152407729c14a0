"""A day's scores beside a version's calibration scores: how far apart, how surely, and how many more are alarms.

Where nothing has drifted, a day's normal images and the n calibration images are exchangeable: the day's p-values are
uniform over 1/(n+1), ..., 1, and every test here holds for any distribution of scores, from their ranks alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, hypergeom, ks_2samp

from cflow_ray.model.scoring import Calibration

# Shapes: N calibration scores, ascending; M images of a day; L = 2 N + 1 levels.

Interval = tuple[float, float]

CONFIDENCE = 0.95
"""Of every interval."""
BULK = 0.9
"""The bulk are the scores below the calibration's quantile of this rank; anomalies mostly lie above it."""
_WEI_DUDLEY = 2.16863
"""P(D >= d) <= C exp(-2 d^2 n m / (n + m)) for two samples of one distribution (Wei & Dudley 2012, theorem 1)."""


@dataclass(frozen=True)
class Reference:
    """What the days of a version are compared with."""

    calibration: Calibration
    target_fpr: float
    """P-values up to it are alarms."""


class DayScores:
    """A day's scores as counts between and at the calibration scores: all that their ranks say, in 16 N bytes.

    A score's level is how many calibration scores lie below it plus how many do not lie above it: 2 i between the i-th
    and the next, 2 i - 1 at the i-th. Images may come in any order and in pieces.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.score_N = np.asarray(reference.calibration.scores, np.float64)
        self.count_L = np.zeros(2 * self.score_N.size + 1, np.int64)
        self.alarms = 0

    @property
    def images(self) -> int:
        """How many were taken in."""
        return int(self.count_L.sum())

    def add(self, score_M: NDArray[np.float64], p_value_M: NDArray[np.float64]) -> None:
        """Take in images by their scores and the p-values that they were given."""
        self.count_L += self.counts_of(score_M)
        self.alarms += int((p_value_M <= self.reference.target_fpr).sum())

    def counts_of(self, score_M: NDArray[np.float64]) -> NDArray[np.int64]:
        """How many of the scores lie at each level, (L,)."""
        level_M = np.searchsorted(self.score_N, score_M, "left") + np.searchsorted(self.score_N, score_M, "right")
        return np.bincount(level_M, minlength=self.count_L.size)


@dataclass(frozen=True)
class Comparison:
    """A day of one version against its calibration. Shares and p-values lie in [0, 1], intervals hold 95 %."""

    images: int
    calibration_images: int
    distance: float
    """Two-sample Kolmogorov-Smirnov statistic of all scores, in [0, 1]."""
    distance_interval: Interval
    """Of the distance between the two distributions, by Wei and Dudley's bound."""
    p_value: float
    """Of that distance if nothing has drifted; exact up to 10,000 images."""
    shift_p_value: float
    """Bound on the same if the distributions are at most the tolerated distance apart."""
    bulk_distance: float
    """The statistic of those scores alone that lie below the calibration's 90th percentile; 0 where there are none."""
    bulk_p_value: float
    above_bulk: float
    """Share of the images that do not."""
    median_rank: float
    """Of the day's median among the calibration scores, 0 below all and 1 above; near 0.5 if nothing has drifted."""
    alarms: int
    alarm_share: float
    alarm_interval: Interval
    """Clopper-Pearson."""
    promised: float
    """Share of alarms among normal images, on average over calibrations: l / (n + 1)."""
    promised_interval: Interval
    """Where the share of a single calibration of n images lies: Beta(l, n + 1 - l)."""
    alarm_p_value: float
    """Chance of at least so many alarms among normal images, the calibration's own luck included."""


def compare(day: DayScores, tolerance: float) -> Comparison:
    """A day with images against a calibration with scores; `tolerance` is a distance that does not count as a shift."""
    images, calibration_images = day.images, day.score_N.size
    calibration_L = day.counts_of(day.score_N)
    whole, bulk = _kolmogorov_smirnov(day.count_L, calibration_L), _bulk(day, calibration_L)
    distance = float(whole.statistic)
    reach = reach_of(1 - CONFIDENCE, images, calibration_images)
    rank = day.reference.calibration.rank(day.reference.target_fpr)
    return Comparison(
        images=images,
        calibration_images=calibration_images,
        distance=distance,
        distance_interval=(max(0.0, distance - reach), min(1.0, distance + reach)),
        p_value=float(whole.pvalue),
        shift_p_value=_bound(max(0.0, distance - tolerance), images, calibration_images),
        bulk_distance=float(bulk.statistic) if bulk else 0.0,
        bulk_p_value=float(bulk.pvalue) if bulk else 1.0,
        above_bulk=float(day.count_L[_bulk_end(day) :].sum() / images),
        median_rank=_median_level(day.count_L) / (2 * calibration_images),
        alarms=day.alarms,
        alarm_share=day.alarms / images,
        alarm_interval=share_interval(day.alarms, images),
        promised=rank / (calibration_images + 1),
        promised_interval=promised_interval(rank, calibration_images),
        alarm_p_value=alarm_p_value(day.alarms, images, rank, calibration_images),
    )


def alarm_p_value(alarms: int, images: int, rank: int, calibration_images: int) -> float:
    """Chance of at least `alarms` of `images` above the `rank`-th highest of n calibration scores, all exchangeable.

    The share of alarms of one calibration is Beta(l, n + 1 - l) (Angelopoulos & Bates 2023, section 3.2), their number
    beta-binomial. It reaches k just if at most l - 1 of the k + l - 1 highest of all n + m scores are the calibration's.
    """
    if alarms == 0 or rank == 0:
        return 1.0
    return float(hypergeom.cdf(rank - 1, calibration_images + images, calibration_images, alarms + rank - 1))


def share_interval(count: int, total: int) -> Interval:
    """Clopper and Pearson's interval of a share of which `count` of `total` were seen."""
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return low, high


def promised_interval(rank: int, calibration_images: int) -> Interval:
    """Where the true share of alarms of one calibration lies, for normal images."""
    tail = (1 - CONFIDENCE) / 2
    low, high = beta.ppf([tail, 1 - tail], rank, calibration_images + 1 - rank) if rank else (0.0, 0.0)
    return float(low), float(high)


def reach_of(level: float, images: int, calibration_images: int) -> float:
    """The distance that two samples of one distribution reach with a chance of at most `level`."""
    return math.sqrt(math.log(_WEI_DUDLEY / level) / (2 * _effective(images, calibration_images)))


def holm_level(p_values: Sequence[float], alpha: float) -> float:
    """The level up to which Holm's procedure rejects: of the hypotheses that hold, any with a chance of at most alpha.

    It rejects the smallest p-values as long as the i-th of K is at most alpha / (K + 1 - i), which are those up to
    alpha / (K - R) once R are rejected. The tests may depend on each other in any way, as days of one calibration do.
    """
    rejected = 0
    for p_value in sorted(p_values):
        if p_value > alpha / (len(p_values) - rejected):
            break
        rejected += 1
    return alpha / max(1, len(p_values) - rejected)


def _bound(distance: float, images: int, calibration_images: int) -> float:
    return min(1.0, _WEI_DUDLEY * math.exp(-2 * distance**2 * _effective(images, calibration_images)))


def _effective(images: int, calibration_images: int) -> float:
    return images * calibration_images / (images + calibration_images)


def _kolmogorov_smirnov(day_L: NDArray[np.int64], calibration_L: NDArray[np.int64]) -> Any:
    """SciPy's test; it looks at ranks alone, so levels stand for scores."""
    level_L = np.arange(day_L.size)
    with warnings.catch_warnings():  # that rarely its exact p-value fails and it takes the asymptotic one
        warnings.simplefilter("ignore", RuntimeWarning)
        return ks_2samp(np.repeat(level_L, day_L), np.repeat(level_L, calibration_L))


def _bulk_end(day: DayScores) -> int:
    """The level of the calibration score of rank `BULK`, the first above the bulk."""
    limit = day.score_N[math.ceil(BULK * day.score_N.size) - 1]
    return int(np.flatnonzero(day.counts_of(limit[None]))[0])


def _bulk(day: DayScores, calibration_L: NDArray[np.int64]) -> Any | None:
    """The test of what lies below the calibration score c of rank `BULK`; None where either side has nothing there.

    Given c, calibration and normal scores below it are samples of one distribution: the test is as exact as the whole's.
    """
    end = _bulk_end(day)
    below, calibration_below = day.count_L[:end], calibration_L[:end]
    return _kolmogorov_smirnov(below, calibration_below) if below.any() and calibration_below.any() else None


def _median_level(count_L: NDArray[np.int64]) -> float:
    total_L = count_L.cumsum()
    middle = np.searchsorted(total_L, [(total_L[-1] + 1) // 2, total_L[-1] // 2 + 1])
    return float(middle.mean())
