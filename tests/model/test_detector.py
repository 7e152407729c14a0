"""A detector's maps and scores: what every setting does to them, and that nothing outside a region counts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.model.detector import Detector
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.position import position_encoding
from cflow_ray.model.region import inside
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.tiling import Layout

FLOW = FlowConfig(blocks=2, condition_channels=8)
CHANNELS = (5, 6)
WHOLE = Layout((64, 96), (64, 96), ((0, 0),))


def make_detector(region_HW: Tensor | None = None, **changes: object) -> Detector:
    """Two levels at 64 x 96 pixels with drawn weights."""
    config = DetectorConfig(
        **{"encoder": EncoderConfig(strides=(8, 16)), "flow": FLOW, "input_size": (64, 96)} | changes
    )
    decoders = [Decoder(C, config.flow, torch.Generator().manual_seed(C)) for C in CHANNELS]
    folded = [FoldedDecoder.of(decoder) for decoder in decoders]
    return Detector(config, folded, Calibration.of([-1.2, -1.3], [0.1, 0.2]), region_HW=region_HW)


def pyramid(images: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, C, *size, generator=generator) for C, size in zip(CHANNELS, ((8, 12), (4, 6)), strict=True)
    ]


def test_a_likelihood_belongs_to_its_location() -> None:
    """On a map that is not square: (b, i, j) is the fibre there under the condition of row i and column j."""
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(5, FLOW, generator).requires_grad_(False)
    features_BChw = torch.randn(2, 5, 3, 4, generator=generator)
    likelihood_Bhw = FoldedDecoder.of(decoder)(features_BChw)
    condition_PD = position_encoding(8, 3, 4)
    assert likelihood_Bhw.shape == (2, 3, 4)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                alone = decoder(features_BChw[b, :, i, j][None], condition_PD[i * 4 + j][None])
                torch.testing.assert_close(likelihood_Bhw[b, i, j], alone[0], rtol=1e-5, atol=1e-6)


def test_a_detector_is_frozen_and_knows_its_size() -> None:
    detector = make_detector()
    assert not detector.training
    assert not any(tensor.requires_grad for tensor in (*detector.parameters(), *detector.buffers()))
    assert detector.bytes == sum(tensor.nbytes for tensor in detector.buffers())
    before = detector.bytes
    for _ in range(2):
        detector.maps(pyramid())
        # of every block a bias a position and hidden unit, of which there are 2 (ceil(C / 2) + 8)
        assert detector.bytes - before == 2 * 4 * (96 * 2 * (3 + 8) + 24 * 2 * (3 + 8))


def test_a_pyramid_of_other_levels_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        make_detector().maps(pyramid()[:1])


# settings


def test_levels_are_weighted_as_configured() -> None:
    """Against the levels' own maps: each weighs its share, and one that weighs nothing does not matter."""
    first, second = (make_detector(level_weights=weights).maps(pyramid()) for weights in ((1, 0), (0, 1)))
    assert (first - second).abs().max() > 0.05
    alike = make_detector().maps(pyramid())
    torch.testing.assert_close(alike, (first + second) / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(make_detector(level_weights=(7, 7)).maps(pyramid()), alike, rtol=0, atol=1e-6)
    mixed = make_detector(level_weights=(1, 3)).maps(pyramid())
    torch.testing.assert_close(mixed, 0.25 * first + 0.75 * second, rtol=0, atol=1e-6)
    silent = pyramid()
    silent[1] *= 100
    assert torch.equal(make_detector(level_weights=(1, 0)).maps(silent), first)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 4.0, 30.0])
def test_smoothing_is_scipys_gaussian_over_the_whole_map(sigma: float) -> None:
    """A kernel wider than the map included; its border is repeated."""
    detector = make_detector(smoothing=sigma)
    maps_1HW = detector.maps(pyramid(1))
    expected_HW = scipy.ndimage.gaussian_filter(maps_1HW[0].double().numpy(), sigma, mode="nearest", truncate=4)
    smooth_HW = detector.whole(maps_1HW, WHOLE)
    np.testing.assert_allclose(smooth_HW.numpy(), expected_HW, atol=1e-5)
    assert smooth_HW.std() < maps_1HW.std()
    assert torch.equal(make_detector().whole(maps_1HW, WHOLE), maps_1HW[0])


def test_the_score_is_the_mean_of_the_configured_share_of_pixels() -> None:
    (map_HW, _) = make_detector().maps(pyramid())
    highest = np.sort(map_HW.double().numpy().ravel())[::-1]
    for fraction, count in ((0.0, 1), (0.001, 7), (0.25, 1536), (1.0, 6144)):  # of 64 x 96
        assert make_detector(top_fraction=fraction).score(map_HW) == pytest.approx(highest[:count].mean(), abs=1e-6)
    assert make_detector(top_fraction=0).score(map_HW) == float(map_HW.max())


def test_an_unconditional_detector_does_not_see_the_place() -> None:
    features = pyramid(1)
    turned = [level.flip(2, 3) for level in features]
    for condition_channels, same in ((0, True), (8, False)):
        detector = make_detector(flow=FlowConfig(blocks=2, condition_channels=condition_channels))
        maps_1HW, turned_1HW = detector.maps(features), detector.maps(turned)
        assert ((maps_1HW - turned_1HW.flip(1, 2)).abs().max() < 1e-5) == same


def test_one_level_alone_is_a_detector_too() -> None:
    config = DetectorConfig(encoder=EncoderConfig(strides=(16,)), flow=FLOW, input_size=(64, 96))
    decoder = FoldedDecoder.of(Decoder(CHANNELS[1], FLOW, torch.Generator().manual_seed(CHANNELS[1])))
    detector = Detector(config, [decoder], Calibration.of([-1.3], []))
    torch.testing.assert_close(
        detector.maps(pyramid()[1:]), make_detector(level_weights=(0, 1)).maps(pyramid()), rtol=0, atol=1e-6
    )


# the region of interest


@pytest.fixture(scope="module")
def disc() -> Tensor:
    """A disc left of the middle."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    return (rows - 30).square() + (columns - 25).square() < 18**2


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
@pytest.mark.parametrize("top_fraction", [0.0, 0.01, 1.0])
def test_pixels_outside_the_region_cannot_change_the_score(disc: Tensor, smoothing: float, top_fraction: float) -> None:
    detector = make_detector(disc, smoothing=smoothing, top_fraction=top_fraction)
    maps_1HW = detector.maps(pyramid(1))
    map_HW = detector.whole(maps_1HW, WHOLE)
    assert torch.equal(map_HW[~disc], torch.zeros(int((~disc).sum())))
    noise_HW = torch.rand(64, 96)
    assert detector.score(torch.where(disc, map_HW, noise_HW)) == detector.score(map_HW)
    assert torch.equal(detector.whole(torch.where(disc, maps_1HW, noise_HW), WHOLE), map_HW)
    if not smoothing:
        assert torch.equal(map_HW[disc], maps_1HW[0][disc])
    expected = np.sort(map_HW[disc].double().numpy())[::-1]
    count = max(1, int(np.ceil(top_fraction * len(expected))))
    assert detector.score(map_HW) == pytest.approx(expected[:count].mean(), abs=1e-6)


def test_features_seen_only_from_outside_the_region_cannot_change_the_score(disc: Tensor) -> None:
    """A location's likelihood reaches its neighbours on the map by interpolation, no further."""
    detector = make_detector(disc, top_fraction=0.5)
    features = pyramid(1)
    score = detector.score(detector.whole(detector.maps(features), WHOLE))
    far = [level.clone() for level in features]
    far[0][..., 8:] += 5  # columns from pixel 60 on; the region ends at 43
    far[1][..., 4:] += 5
    assert detector.score(detector.whole(detector.maps(far), WHOLE)) == score
    near = [level.clone() for level in features]
    near[0][..., 3, 3] += 5
    assert detector.score(detector.whole(detector.maps(near), WHOLE)) != score


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (5, 7), (64, 96), (1, 1)])
def test_a_location_is_inside_where_it_sees_any_pixel_of_the_region(disc: Tensor, size: tuple[int, int]) -> None:
    found_hw = inside(disc, size)
    assert found_hw.shape == size
    for row in range(size[0]):
        for column in range(size[1]):
            rows = slice(row * 64 // size[0], -(-(row + 1) * 64 // size[0]))
            columns = slice(column * 96 // size[1], -(-(column + 1) * 96 // size[1]))
            assert bool(found_hw[row, column]) == bool(disc[rows, columns].any())


def test_the_smallest_region_is_inside_at_every_level() -> None:
    dot_HW = torch.zeros(64, 96, dtype=torch.bool)
    dot_HW[63, 95] = True
    for size in ((8, 12), (4, 6), (2, 3)):
        assert inside(dot_HW, size).nonzero().tolist() == [[size[0] - 1, size[1] - 1]]
