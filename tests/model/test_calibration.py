"""The promise of a p-value, held on a thousand fresh normal images of the demo's generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.data.synthetic import normal_images
from cflow_ray.errors import DataError
from cflow_ray.model.calibration import calibrated, calibration_scores
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import Features, encode
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.fitting import fit_detector, image_scores_of
from cflow_ray.model.flow import Decoder
from cflow_ray.model.partition import Split
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.tiling import Layout
from tests.model.conftest import MakeDecoder

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
    p_values = p_values_of(fitted, fresh)
    for target in (0.01, 0.05):
        low, high = band(calibrating, target)
        alarms = int((p_values <= target).sum())
        assert low <= alarms <= high, f"{alarms} false alarms at {target} of {FRESH}; allowed {low} to {high}"
        if calibration.smallest_target > target:
            assert alarms == 0
            assert calibration.threshold(target) is None
    assert_uniform(p_values, calibrating)


@pytest.mark.parametrize(("images", "fits"), [(30, 20), (100, 10)])
def test_false_alarms_are_as_promised_in_the_mean_of_fits(
    lite0_state: dict[str, Tensor], images: int, fits: int
) -> None:
    """Of few images a single fit may be far off without breaking the promise, the mean of fits may not."""
    one_level = EncoderConfig(strides=(16,))
    of_few = config().model_copy(update={"encoder": one_level, "flow": FlowConfig(blocks=2, condition_channels=8)})
    encoder = Encoder(one_level, lite0_state)
    fresh = encoded(encoder, 1500, seed=99)
    shares = []
    for seed in range(fits):
        fitted = fit_detector(encoded(encoder, images, seed=1000 + seed), of_few, seed)
        p_values = p_values_of(fitted, fresh)
        shares.append([(p_values <= target).mean() for target in (0.05, 0.25)])
    for target, found in zip((0.05, 0.25), np.mean(shares, axis=0), strict=True):
        rank = int(target * (images + 1))
        rate = stats.beta(rank, images + 1 - rank)
        error = (rate.var() / fits + target * (1 - target) / len(fresh)) ** 0.5  # the fresh images are the same for all
        assert abs(found - rate.mean()) <= 3.3 * error, (
            f"{found} of the fresh images at {target}, {rate.mean()} expected"
        )


def p_values_of(fitted: Fitted, images: Features) -> NDArray[np.float64]:
    scores = image_scores_of(fitted.detector(), images, range(len(images)))
    return np.array([fitted.calibration.p_value(score) for score in scores])


def assert_uniform(p_values: NDArray[np.float64], calibration: int) -> None:
    """At every level within the band of a beta-binomial count."""
    for target in (0.1, 0.25, 0.5, 0.75, 0.9):
        low, high = band(calibration, target)
        assert low <= int((p_values <= target).sum()) <= high


@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_folds_keep_the_promise_where_images_hardly_differ_too(noise: float) -> None:
    """Under a fixed camera models of other images differ by more than images do; the mean of fits tells, no single one."""
    fits, images, fresh = 20, 24, 100
    of_folds = DetectorConfig(
        encoder=EncoderConfig(strides=(8, 16)),
        flow=FlowConfig(blocks=2, condition_channels=8),
        input_size=SIDE,
        recipe="fast",
        calibration="cross",
    )
    shares = []
    for seed in range(fits):
        generator = torch.Generator().manual_seed(seed)
        scene = [torch.randn(channels, side, side, generator=generator) for channels, side in ((5, 8), (6, 4))]

        def seen(count: int, scene: list[Tensor] = scene, generator: torch.Generator = generator) -> list[Tensor]:
            return [level + noise * torch.randn(count, *level.shape, generator=generator) for level in scene]

        fitted = fit_detector(Features.of_pyramid(seen(images), (SIDE, SIDE)), of_folds, seed)
        detector = fitted.detector()
        p_values = [fitted.calibration.p_value(detector.score(map_HW)) for map_HW in detector.maps(seen(fresh))]
        shares.append(float(np.mean(np.array(p_values) <= 0.05)))
    rank = int(0.05 * (images + 1))
    share = stats.betabinom(fresh, rank, images + 1 - rank)
    expected, error = share.mean() / fresh, share.std() / fresh / fits**0.5
    assert expected - 3.3 * error <= np.mean(shares) <= expected + 3.3 * error


def test_folds_are_brought_to_the_level_of_the_kept_model_by_the_images_that_both_held_out() -> None:
    splits = [
        Split((2, 3, 4), selection=(5, 0), calibration=(1,)),
        Split((1, 4, 5), selection=(0, 2), calibration=(3,)),
        Split((1, 2, 5), selection=(4,), calibration=(0,)),  # it shares none with the last
        Split((1, 3, 4), selection=(0, 2, 5), calibration=()),
    ]
    scores = [torch.tensor(of_model) for of_model in ([0.5, 0.3, 0.1], [0.4, 0.6, 0.4], [0.7, 0.9], [0.2, 0.3, 0.1])]
    aligned = calibration_scores(splits, scores)  # offsets (-.2 + .1) / 2, (-.4 - .1) / 2, none
    assert aligned == pytest.approx([0.45, 0.15, 0.7])
    scores[3] = scores[3] + 10
    assert max(calibration_scores(splits, scores)) < 1


# -- weights that are fixed


def drawn_features(images: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, side, side, generator=generator) for channels, side in ((5, 8), (6, 4))]


def drawn_fitted(make_decoder: MakeDecoder) -> Fitted:
    two_levels = DetectorConfig(
        encoder=EncoderConfig(strides=(8, 16)),
        flow=FlowConfig(blocks=3, condition_channels=8),
        input_size=64,
        top_fraction=1.0,  # the highest pixels of drawn features are all near 1
    )
    return Fitted(two_levels, (make_decoder(5), make_decoder(6)), Calibration((), ()))


def test_one_half_of_the_images_gives_the_peaks_and_the_other_the_scores(make_decoder: MakeDecoder) -> None:
    """Make one image at a time the likeliest there is: either the peaks move, or exactly one score does, downwards."""
    config, generator, count = drawn_fitted(make_decoder).config, torch.Generator().manual_seed(0), 9
    like_gaussians = tuple(Decoder(channels, config.flow, generator) for channels in (5, 6))
    fitted = Fitted(config, like_gaussians, Calibration((), ()))
    pyramid = drawn_features(count)
    before = calibrated(fitted, Features.of_pyramid(pyramid, (64, 64)), seed=3).calibration
    assert len(before.peaks) == 2
    assert len(before.scores) == 5
    select, score = 0, 0
    for image in range(count):
        changed = [level.clone() for level in pyramid]
        for level in changed:
            level[image] = 0
        after = calibrated(fitted, Features.of_pyramid(changed, (64, 64)), seed=3).calibration
        if after.peaks != before.peaks:
            select += 1
        else:
            score += 1
            assert len(set(before.scores) & set(after.scores)) == 4
            assert sum(after.scores) < sum(before.scores) - 0.1
    assert (select, score) == (4, 5)


def test_peaks_lie_where_few_likelihoods_of_the_selecting_half_exceed_them(make_decoder: MakeDecoder) -> None:
    fitted = drawn_fitted(make_decoder)
    pyramid = drawn_features(400)
    found = calibrated(fitted, Features.of_pyramid(pyramid, (64, 64)), seed=0)
    for likelihood, peak in zip(found.detector().likelihoods(pyramid), found.calibration.peaks, strict=True):
        assert 0.005 < (likelihood > peak).float().mean() < 0.015


def test_the_seed_draws_the_halves_and_nothing_else_matters(make_decoder: MakeDecoder) -> None:
    fitted, features = drawn_fitted(make_decoder), Features.of_pyramid(drawn_features(12), (64, 64))
    first, again, other = (calibrated(fitted, features, seed).calibration for seed in (0, 0, 1))
    assert first == again != other
    before = calibrated(fitted, features, 0)
    assert calibrated(before, features, 0).calibration == before.calibration  # the old calibration leaves no trace


def test_a_region_outside_which_nothing_counts_stays_in_force(make_decoder: MakeDecoder) -> None:
    region_HW = torch.zeros(64, 64, dtype=torch.bool)
    region_HW[:, :32] = True
    fitted, pyramid = replace(drawn_fitted(make_decoder), region_HW=region_HW), drawn_features(12)
    changed = [level.clone() for level in pyramid]
    for level in changed:
        level[..., level.shape[3] // 2 + 1 :] *= 30
    found, other = (calibrated(fitted, Features.of_pyramid(maps, (64, 64)), 0) for maps in (pyramid, changed))
    assert found.calibration.peaks == other.calibration.peaks


@pytest.mark.parametrize("count", [1, 7])
def test_too_few_images_to_calibrate_are_refused(make_decoder: MakeDecoder, count: int) -> None:
    features = Features.of_pyramid(drawn_features(count), (64, 64))
    with pytest.raises(DataError, match=rf"{count} normal .*at least 8"):
        calibrated(drawn_fitted(make_decoder), features, 0)
