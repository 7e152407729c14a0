"""A fit is reproducible, learns what is there to learn, keeps its images apart, and fails with a reason."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf
from torch import Tensor
from torch.distributions import MultivariateNormal

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.errors import ConfigError, DataError, FitError
from cflow_ray.model.detector import Detector, DetectorBank
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.fitting import FitProgress, category_seed, encode, fit_detector, split_normals

TWO_LEVELS = DetectorConfig(
    encoder=EncoderConfig(strides=(8, 16)),
    flow=FlowConfig(blocks=4, condition_channels=16),
    input_size=64,
    recipe="fast",
)


def structured_pyramid(images: int, seed: int) -> list[Tensor]:
    """Features no Gaussian describes: a parabola, a mean that follows the column, and a gate between channels."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = []
    for side in (8, 4):
        noise = torch.randn(4, images, side, side, generator=generator)
        column = torch.linspace(-3, 3, side).expand(images, side, side)
        parabola = noise[0].square() + 0.2 * noise[1]
        gate = torch.where(noise[0] > 0, 1.0, -1.0) * 2 + 0.2 * noise[3]
        pyramid.append(torch.stack([noise[0], parabola, column + 0.3 * noise[2], gate], dim=1))
    return pyramid


def small_pyramid(images: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, side, side, generator=generator) for channels, side in ((5, 8), (6, 4))]


def mean_nll(detector: Detector, pyramid: list[Tensor]) -> list[float]:
    return [-float(likelihood.mean()) for likelihood in detector.likelihoods(pyramid)]


# the split


@settings(deadline=None)
@given(
    count=st.integers(8, 300),
    selection=st.floats(0.01, 0.98),
    calibration=st.floats(0.01, 0.98),
    seed=st.integers(0, 2**32),
)
def test_split_is_disjoint_complete_and_large_enough_or_refused(
    count: int, selection: float, calibration: float, seed: int
) -> None:
    config = DetectorConfig(selection_fraction=selection, calibration_fraction=calibration)
    generator = torch.Generator().manual_seed(seed)
    if round(selection * count) + round(calibration * count) >= count:
        with pytest.raises(ConfigError, match=f"none of {count} normal"):
            split_normals(count, config, generator)
        return
    if selection + calibration > 0.4:  # the smallest parts may still ask for too much
        assume(max(2, round(selection * count)) + max(4, round(calibration * count)) < count)
        assume(max(4, round(selection * count)) + max(2, round(calibration * count)) < count)
    split = split_normals(count, config, generator)
    assert sorted(split.train + split.selection + split.calibration) == list(range(count))
    assert len(split.train) >= 1
    smallest = 4 if count >= 16 else count // 4
    for part, share in ((split.selection, selection), (split.calibration, calibration)):
        assert len(part) >= smallest
        assert len(part) == smallest or abs(len(part) - share * count) <= 0.5


@pytest.mark.parametrize("count", [8, 9, 15, 16, 40, 209, 391])
def test_with_the_default_shares_most_images_train(count: int) -> None:
    split = split_normals(count, DetectorConfig(), torch.Generator().manual_seed(0))
    assert len(split.train) >= count / 2
    assert min(len(split.selection), len(split.calibration)) >= 2


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_images_are_refused_with_both_numbers(count: int) -> None:
    with pytest.raises(DataError, match=rf"{count} normal.*at least 8"):
        fit_detector([level[:count] for level in small_pyramid()], TWO_LEVELS, seed=0)


def test_the_split_is_drawn_not_in_order_and_follows_the_seed() -> None:
    splits = [split_normals(40, DetectorConfig(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]
    assert splits[0].train != tuple(range(12, 40))


def test_category_seeds_differ_by_run_and_category() -> None:
    names = [f"{family}{number}" for family in ("candle", "pcb", "capsules", "") for number in ("", 1, 2, 3, 4, 11)]
    seeds = [category_seed(run, name) for run in range(20) for name in names]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


# the fit


def test_the_same_seed_gives_bit_identical_detectors_and_another_seed_others() -> None:
    pyramid = small_pyramid()
    first = fit_detector(pyramid, TWO_LEVELS, category_seed(0, "screw"))
    np.random.seed(1)  # global states must not matter
    torch.manual_seed(1)
    again = fit_detector([level.clone() for level in pyramid], TWO_LEVELS, category_seed(0, "screw"))
    other = fit_detector(pyramid, TWO_LEVELS, category_seed(0, "zipper"))
    assert first.calibration == again.calibration
    assert first.calibration != other.calibration
    weights, same, others = (detector.state_dict() for detector in (first, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    drawn = [name for name in weights if name.endswith(("1.w_perm", "2.w_perm", "3.w_perm", "subnet.0.weight"))]
    assert len(drawn) == 2 * (3 + 4)
    assert not any(torch.equal(weights[name], others[name]) for name in drawn)


def test_the_features_are_left_as_they_were() -> None:
    pyramid = small_pyramid()
    before = [level.clone() for level in pyramid]
    fit_detector(pyramid, TWO_LEVELS, 0)
    assert all(torch.equal(level, old) for level, old in zip(pyramid, before, strict=True))


@pytest.fixture(scope="module")
def structured() -> tuple[Detector, list[FitProgress]]:
    reports: list[FitProgress] = []
    return fit_detector(structured_pyramid(400, seed=0), TWO_LEVELS, 0, reports.append), reports


def test_a_fit_beats_the_gaussian_it_starts_from_on_unseen_images(
    structured: tuple[Detector, list[FitProgress]],
) -> None:
    detector, _ = structured
    unseen = structured_pyramid(100, seed=1)
    for level, features, nll in zip(structured_pyramid(400, seed=0), unseen, mean_nll(detector, unseen), strict=True):
        rows = level.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        covariance, _ = ledoit_wolf(rows)
        gaussian = MultivariateNormal(torch.from_numpy(rows.mean(0)), torch.from_numpy(covariance))
        gaussian_nll = -float(gaussian.log_prob(features.permute(0, 2, 3, 1).double()).mean()) / 4
        assert nll < gaussian_nll - 0.3


def test_the_fit_learns_what_is_normal_where() -> None:
    """The features are their column and some noise: only a fit that knows each fibre's place gets below the spread."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.linspace(-3, 3, 8).expand(350, 2, 8, 8)
    features = columns + 0.3 * torch.randn(350, 2, 8, 8, generator=generator)
    config = TWO_LEVELS.model_copy(update={"encoder": EncoderConfig(strides=(8,))})
    detector = fit_detector([features[:300]], config, seed=0)
    (nll,) = mean_nll(detector, [features[300:]])
    (nll_elsewhere,) = mean_nll(detector, [features[300:].flip(3)])
    blind = MultivariateNormal(torch.zeros(2), torch.cov(features.permute(1, 0, 2, 3).flatten(1))).entropy() / 2
    assert nll < blind - 0.4
    assert nll_elsewhere > nll + 1


def test_a_fitted_map_points_at_what_breaks_the_structure(structured: tuple[Detector, list[FitProgress]]) -> None:
    """The planted fibre is ordinary in every channel alone and breaks only their relation."""
    detector, _ = structured
    pyramid = structured_pyramid(20, seed=2)
    before = detector.maps(pyramid)
    for features, (row, column) in zip(pyramid, ((2, 5), (1, 2)), strict=True):
        features[:, 1, row, column] = 0.0
        features[:, 0, row, column] = 1.2
    after = detector.maps(pyramid)
    assert (detector.scores(after) > detector.scores(before)).float().mean() > 0.9
    rows, columns = np.unravel_index((after - before).flatten(1).argmax(1).numpy(), (64, 64))
    assert np.median(np.abs(rows - 2 * 63 / 7)) < 9
    assert np.median(np.abs(columns - 5 * 63 / 7)) < 9


def test_progress_is_reported_in_order_to_the_end(structured: tuple[Detector, list[FitProgress]]) -> None:
    _, reports = structured
    assert [level for level, _ in itertools.groupby(reports, lambda report: report.level)] == [0, 1]
    for level in (0, 1):
        of_level = [report for report in reports if report.level == level]
        steps = [report.step for report in of_level]
        assert len(steps) > 3
        assert all(a < b for a, b in itertools.pairwise(steps))
        assert steps[-1] == of_level[-1].steps
        assert {(report.levels, report.steps) for report in of_level} == {(2, steps[-1])}
        assert all(a.nll >= b.nll for a, b in itertools.pairwise(of_level))  # the best so far, which is kept
        assert of_level[-1].nll < of_level[0].nll


def test_overfitting_does_not_leave_a_detector_worse_than_its_start() -> None:
    """Held-out images choose the step: on pure noise nothing can be learnt, and nothing may be lost."""
    pyramid = [torch.randn(16, 30, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    unseen = [torch.randn(50, 30, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    detector = fit_detector(pyramid, TWO_LEVELS, 0)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    assert max(mean_nll(detector, unseen)) < entropy + 0.3


# the calibration


@pytest.fixture(scope="module")
def fitted_photographs(lite0: Encoder, photographs: Tensor) -> tuple[Detector, list[Tensor]]:
    """A detector of all three levels of the real encoder on sixteen pieces of photographs."""
    config = DetectorConfig(input_size=64, recipe="fast", flow=FlowConfig(blocks=3))
    pyramid = encode(lite0, photographs.split(1))
    return fit_detector(pyramid, config, seed=3), pyramid


def test_calibration_scores_are_exactly_what_scoring_gives_those_images(
    fitted_photographs: tuple[Detector, list[Tensor]], photographs: Tensor, lite0: Encoder
) -> None:
    detector, _ = fitted_photographs
    bank = DetectorBank[str](lambda key: detector, lambda config, digest: lite0)
    scores = [bank.score_batch([image], [""])[0].score for image in photographs]
    calibration = detector.calibration.scores
    assert len(calibration) == 4
    assert list(calibration) == sorted(calibration)
    assert len(set(calibration)) == 4
    assert set(calibration) <= set(scores)


def test_peaks_are_what_few_locations_of_unseen_normal_images_exceed(
    structured: tuple[Detector, list[FitProgress]],
) -> None:
    detector, _ = structured
    unseen = detector.likelihoods(structured_pyramid(200, seed=4))
    for likelihood, peak in zip(unseen, detector.calibration.peaks, strict=True):
        assert 0 < (likelihood > peak).float().mean() < 0.03  # the 99 % quantile of the selection images


def test_images_that_calibrate_choose_nothing_and_the_others_do_not_calibrate() -> None:
    """Change one image at a time: where weights and peaks stay, the image calibrates, and its score has to move."""
    pyramid = small_pyramid(12)
    detector = fit_detector(pyramid, TWO_LEVELS, seed=0)
    calibrating = 0
    for image in range(12):
        changed = [level.clone() for level in pyramid]
        for level in changed:
            level[image] *= 3
        other = fit_detector(changed, TWO_LEVELS, seed=0)
        weights, others = detector.state_dict(), other.state_dict()
        same_weights = all(torch.equal(weights[name], others[name]) for name in weights)
        if same_weights and other.calibration.peaks == detector.calibration.peaks:
            calibrating += 1
            moved = set(other.calibration.scores) - set(detector.calibration.scores)
            assert len(moved) == 1
            assert moved.pop() == max(other.calibration.scores)  # three times the features: an odd image
    assert calibrating == len(detector.calibration.scores) == 3


def test_encoding_in_any_batches_gives_the_same_features_in_order(lite0: Encoder, photographs: Tensor) -> None:
    alone, together = encode(lite0, photographs.split(1)), encode(lite0, photographs.split([5, 8, 3]))
    for level, other in zip(alone, together, strict=True):
        assert len(level) == len(photographs)
        assert (level - other).abs().max() <= 1e-5 * level.abs().max()


def test_a_category_of_identical_black_images_can_be_fitted(lite0: Encoder, photographs: Tensor) -> None:
    config = DetectorConfig(input_size=64, recipe="fast", flow=FlowConfig(blocks=3))
    black = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    detector = fit_detector(encode(lite0, [black]), config, seed=0)
    assert all(torch.isfinite(parameter).all() for parameter in detector.parameters())
    assert all(np.isfinite([*detector.calibration.peaks, *detector.calibration.scores]))
    bank = DetectorBank[str](lambda key: detector, lambda config, digest: lite0)
    findings = bank.score_batch([black[0], photographs[0]], ["", ""])
    assert all(np.isfinite(finding.map_HW).all() for finding in findings)
    assert findings[0].score == pytest.approx(detector.calibration.scores[0], abs=1e-5)
    assert findings[1].score > findings[0].score + 0.2


# failures


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("level", [0, 1])
def test_features_that_are_not_finite_fail_by_level_whichever_image_holds_them(value: float, level: int) -> None:
    """Training, selection or calibration: no image may slip a NaN into weights, peaks or calibration scores."""
    for image in range(12):
        pyramid = small_pyramid()
        pyramid[level][image, 2, 1, 3] = value
        with pytest.raises(FitError, match=f"level {level} "):
            fit_detector(pyramid, TWO_LEVELS, seed=0)


def test_held_out_images_beyond_all_likelihood_fail_by_level() -> None:
    split = split_normals(12, TWO_LEVELS, torch.Generator().manual_seed(0))
    pyramid = small_pyramid()
    pyramid[1][list(split.selection)] = 1e30
    with pytest.raises(FitError, match="level 1 "):
        fit_detector(pyramid, TWO_LEVELS, seed=0)


def test_a_pyramid_that_does_not_match_the_configured_levels_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer"):
        fit_detector([*small_pyramid(), small_pyramid()[0]], TWO_LEVELS, seed=0)
