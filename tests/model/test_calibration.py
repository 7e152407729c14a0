"""The promise of a p-value, held on a thousand fresh normal images of the demo's generator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from cflow_ray.config import DetectorConfig, FlowConfig
from cflow_ray.data.synthetic import normal_images
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import Features, encode
from cflow_ray.model.fitting import fit_detector, image_scores_of
from cflow_ray.model.tiling import Layout

SIDE = 64
FRESH = 1000
UNLIKELY = 1e-3  # a correct calibration leaves a band with this probability, on either side


@pytest.fixture(scope="module")
def fresh(lite0: Encoder) -> Features:
    return encoded(lite0, FRESH, seed=99)


def encoded(encoder: Encoder, count: int, seed: int) -> Features:
    """Normal images of one surface; another seed gives others of the same distribution."""
    layout = Layout((SIDE, SIDE), (SIDE, SIDE), ((0, 0),))
    return encode(encoder, ((image, layout) for image in islice(photographs_of_grass(seed), count)))


def photographs_of_grass(seed: int) -> Iterator[Tensor]:
    for pixels in normal_images("grass", FRESH, "train", seed, SIDE):
        yield torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous()


def band(calibration: int, target: float) -> tuple[float, float]:
    """False alarms of FRESH images that a calibration of so many exchangeable scores may give.

    Given its scores the rate of p <= target follows Beta(k, n + 1 - k) with k = floor(target (n + 1)), so the count
    among fresh images is beta-binomial.
    """
    rank = int(np.floor(target * (calibration + 1) + 1e-9))
    alarms = stats.betabinom(FRESH, rank, calibration + 1 - rank) if rank else stats.bernoulli(0)
    return float(alarms.ppf(UNLIKELY)), float(alarms.ppf(1 - UNLIKELY))


@lru_cache(maxsize=1)
def config() -> DetectorConfig:
    return DetectorConfig(input_size=SIDE, recipe="fast", flow=FlowConfig(blocks=4), top_fraction=0.01)


@pytest.mark.parametrize(("images", "calibrating"), [(30, 30), (100, 100), (500, 100)])
def test_false_alarms_are_as_promised(lite0: Encoder, fresh: Features, images: int, calibrating: int) -> None:
    fitted = fit_detector(encoded(lite0, images, seed=images), config(), seed=1)
    calibration = fitted.calibration
    assert len(calibration.scores) == calibrating  # cross below 200 images, a fifth held out above
    scores = image_scores_of(fitted.detector(), fresh, range(FRESH))
    p_values = np.array([calibration.p_value(score) for score in scores])
    for target in (0.01, 0.05):
        low, high = band(calibrating, target)
        alarms = int((p_values <= target).sum())
        assert low <= alarms <= high, f"{alarms} false alarms at {target} of {FRESH}; allowed {low} to {high}"
        if calibration.smallest_target > target:
            assert alarms == 0
            assert calibration.threshold(target) is None
    assert_uniform(p_values, calibrating)


def assert_uniform(p_values: NDArray[np.float64], calibration: int) -> None:
    """At every level within the band of a beta-binomial count."""
    for target in (0.1, 0.25, 0.5, 0.75, 0.9):
        low, high = band(calibration, target)
        assert low <= int((p_values <= target).sum()) <= high
