"""Encoded features: every image's own rows, in half precision and in order, whatever batches they came in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cflow_ray.config import DetectorConfig, TilingConfig
from cflow_ray.errors import FitError
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import Features, encode
from cflow_ray.model.tiling import Layout

WHOLE = Layout((64, 64), (64, 64), ((0, 0),))


def as_encoder(function: Callable[[Tensor], list[Tensor]]) -> Encoder:
    """Any function of images as the network, for what only needs features."""
    return cast(Encoder, function)


def numbers(images_B3HW: Tensor) -> list[Tensor]:
    """Two levels whose every value is the number that the image is painted with."""
    value_B111 = images_B3HW[:, :1, :1, :1].float()
    return [value_B111.expand(-1, 3, 4, 4), value_B111.expand(-1, 5, 2, 2)]


def painted(number: int, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.full((3, *size), number, dtype=torch.uint8)


def values(features: Features, tiles: list[int]) -> list[float]:
    return [float(features.levels[1].maps([tile]).unique().item()) for tile in tiles]


def test_encoded_features_are_the_encoders_in_order_whatever_the_batches(lite0: Encoder, photographs: Tensor) -> None:
    """A pass takes sixteen tiles: with 4, 16 and 21 images it is broken, full, and overrun."""
    images = [*photographs, *photographs[:5]]
    for count in (4, 16, 21):
        features = encode(lite0, [(image, WHOLE) for image in images[:count]])
        assert len(features) == count
        for number, image in enumerate(images[:count]):
            for level, alone in zip(features.levels, lite0(image[None]), strict=True):
                (found,) = level.maps(features.tiles([number]))
                # half precision within 2^-10 of a value, the encoder's batches within 1e-5 of the largest
                allowed = 2**-10 * alone[0].abs() + 2e-5 * alone.abs().max()
                assert ((found - alone[0]).abs() <= allowed).all()


# half precision


@settings(deadline=None)
@given(
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 3.0, 1e6, 1e30]),
    spread=st.floats(0, 6),
    seed=st.integers(0, 1000),
)
def test_half_precision_keeps_eleven_bits_at_any_scale(scale: float, spread: float, seed: int) -> None:
    """Relative to each value down to 2^-24 of the largest; below that half's own smallest step."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = 10 ** (-spread * torch.rand(4, 6, 5, 3, generator=generator))
    maps_TChw = scale * magnitude * torch.randn(4, 6, 5, 3, generator=generator)
    level = Features.of_pyramid([maps_TChw], (64, 64)).levels[0]
    assert math.frexp(level.scale)[0] == 0.5  # a power of two: scaling costs no bit
    assert all(rows.dtype == torch.float16 for rows in level.tiles)
    error = (level.maps(range(4)) - maps_TChw).abs().double()
    assert (error <= 2**-10 * maps_TChw.abs().double() + 2**-25 * level.scale).all()
    # half holds 64 to 128 times the largest, so an error by its smallest step is below 2^-33.99 of the largest
    assert 65504 / 128 < maps_TChw.abs().max().double() / level.scale <= 65504 / 64


@pytest.mark.parametrize("value", [0.3, -1.2345, 2.5001, 700.01])
def test_half_precision_rounds_up_as_often_as_keeps_the_mean(value: float) -> None:
    """A constant channel does not become another constant."""
    (level,) = Features.of_pyramid([torch.full((50, 2, 8, 8), value)], (64, 64)).levels
    maps_TChw = level.maps(range(50))
    low, high = maps_TChw.unique().tolist()
    assert low < value < high
    assert (high - low) / abs(value) <= 2**-10
    assert float(maps_TChw.double().mean()) == pytest.approx(value, abs=0.1 * (high - low))


def test_what_half_precision_holds_is_kept_as_it_is() -> None:
    maps_TChw = torch.tensor([0.0, 1.0, -3.0, 0.5, 2047.0]).view(1, 5, 1, 1).repeat(9, 1, 4, 4)
    (level,) = Features.of_pyramid([maps_TChw], (64, 64)).levels
    assert torch.equal(level.maps(range(9)), maps_TChw)


def test_maps_and_rows_are_the_same_values_at_their_places() -> None:
    maps_TChw = torch.arange(2 * 3 * 4 * 5).float().view(2, 3, 4, 5)
    level = Features.of_pyramid([maps_TChw], (64, 64)).levels[0]
    assert (level.channels, level.positions, level.size) == (3, 20, (4, 5))
    assert torch.equal(level.maps([1, 0]), maps_TChw[[1, 0]])
    rows_tpC = level.fibres([1], torch.tensor([0, 7, 19]))
    assert torch.equal(rows_tpC[0], torch.stack([maps_TChw[1, :, place // 5, place % 5] for place in (0, 7, 19)]))


def test_later_images_may_be_64_times_as_large_as_the_first_pass() -> None:
    """The scale is chosen from the first sixteen tiles and leaves that much room."""

    def as_bright_as_painted(images_B3HW: Tensor) -> list[Tensor]:
        return [images_B3HW[:, :1, ::16, ::16].float()]

    images = [painted(3)] * 16 + [painted(3 * 64)]
    features = encode(as_encoder(as_bright_as_painted), [(image, WHOLE) for image in images])
    assert values_of_level(features) == [3.0] * 16 + [192.0]


def test_features_that_are_cut_off_are_told_once_a_level(caplog: pytest.LogCaptureFixture) -> None:
    def far_brighter(images_B3HW: Tensor) -> list[Tensor]:
        return [images_B3HW[:, :1, ::16, ::16].float() ** 3]

    images = [painted(1)] * 16 + [painted(6), painted(7), painted(8)] + [painted(1)] * 13 + [painted(9)]
    features = encode(as_encoder(far_brighter), [(image, WHOLE) for image in images])
    assert values_of_level(features)[16] == pytest.approx(65504 / 512)
    (told,) = caplog.messages
    assert "level 0: a feature of 512 is fitted as 128" in told


def values_of_level(features: Features) -> list[float]:
    level = features.levels[0]
    return [float(level.maps([tile]).unique().item()) for tile in range(len(level.tiles))]


def test_features_that_are_all_zero_stay_zero() -> None:
    level = Features.of_pyramid([torch.zeros(2, 3, 4, 4)], (64, 64)).levels[0]
    assert level.scale == 1
    assert torch.equal(level.maps([0, 1]), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("image", [0, 17])
def test_features_that_are_not_finite_are_refused_by_level(value: float, level: int, image: int) -> None:
    """In the first pass as in a later one."""

    def broken(images_B3HW: Tensor) -> list[Tensor]:
        pyramid = [maps.clone() for maps in numbers(images_B3HW)]
        pyramid[level][images_B3HW[:, 0, 0, 0] == image, 1, 1, 0] = value
        return pyramid

    with pytest.raises(FitError, match=f"not finite at level {level}, before the first step"):
        encode(as_encoder(broken), [(painted(number), WHOLE) for number in range(20)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("level", [0, 1])
def test_a_level_without_any_finite_feature_is_refused_by_number(value: float, level: int) -> None:
    """What an encoder with damaged weights gives."""

    def broken(images_B3HW: Tensor) -> list[Tensor]:
        return [torch.full_like(maps, value) if of == level else maps for of, maps in enumerate(numbers(images_B3HW))]

    with pytest.raises(FitError, match=f"not finite at level {level}, before the first step"):
        encode(as_encoder(broken), [(painted(number), WHOLE) for number in range(20)])


# tiles and copies


def test_every_image_has_its_own_tiles_and_its_own_copies() -> None:
    config = DetectorConfig(input_size=64, tiling=TilingConfig(overlap=0.25)).input
    sizes = [(64, 64), (100, 64), (64, 64), (130, 90), *[(64, 64)] * 16]
    images = [(painted(10 * number, size), Layout.of(size, config)) for number, size in enumerate(sizes)]
    features = encode(
        as_encoder(numbers), images, copies=lambda image: [image + 1, image + 2] if image[0, 0, 0] != 20 else []
    )
    assert len(features) == len(sizes)
    for number, (_, layout) in enumerate(images):
        tiles = len(layout.corners)
        assert features.layouts[number] == layout
        own, copies = features.tiles([number]), features.tiles([number], copies=True)
        assert values(features, own) == [10.0 * number] * tiles
        altered = [] if number == 2 else [10.0 * number + 1] * tiles + [10.0 * number + 2] * tiles
        assert values(features, copies) == [10.0 * number] * tiles + altered
    everything = features.tiles(range(len(sizes)), copies=True)
    assert sorted(everything) == list(range(len(features.levels[0].tiles)))


def test_a_pyramid_of_whole_maps_is_one_tile_an_image() -> None:
    features = Features.of_pyramid([torch.randn(5, 3, 4, 6), torch.randn(5, 2, 2, 3)], (32, 48))
    assert len(features) == 5
    assert [features.tiles([image]) for image in range(5)] == [[0], [1], [2], [3], [4]]
    assert features.tiles(range(5), copies=True) == [0, 1, 2, 3, 4]
    assert {(layout.size, layout.tile, layout.corners) for layout in features.layouts} == {
        ((32, 48), (32, 48), ((0, 0),))
    }


def test_what_keeps_the_features_gets_every_level_in_half_precision() -> None:
    kept = list[Tensor]()

    def keep(rows: Tensor) -> Tensor:
        kept.append(rows)
        return rows.clone()

    features = encode(as_encoder(numbers), [(painted(number), WHOLE) for number in range(20)], keep=keep)
    assert [rows.dtype for rows in kept] == [torch.float16] * 4
    assert [tuple(rows.shape) for rows in kept] == [(16, 16, 3), (16, 4, 5), (4, 16, 3), (4, 4, 5)]
    assert values(features, list(range(20))) == list(range(20))
