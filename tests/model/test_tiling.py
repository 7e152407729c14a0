"""Tiles cover an image with the overlap that was asked for, and their maps blend into the map they were cut from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cflow_ray.config import DetectorConfig, InputConfig, TilingConfig
from cflow_ray.model.tiling import Layout

SIDES = st.integers(32, 400)
TILES = st.tuples(st.sampled_from([32, 48, 64, 100]), st.sampled_from([32, 48, 64, 100]))
OVERLAPS = st.floats(0, 0.9)


def tiled(tile: tuple[int, int], overlap: float) -> InputConfig:
    return DetectorConfig(input_size=tile, tiling=TilingConfig(overlap=overlap)).input


def layout_of(height: int, width: int, tile: tuple[int, int], overlap: float) -> Layout:
    """Of an image as `prepare` makes it: at least a tile on either side."""
    return Layout.of((max(height, tile[0]), max(width, tile[1])), tiled(tile, overlap))


@settings(deadline=None)
@given(height=SIDES, width=SIDES, tile=TILES, overlap=OVERLAPS)
def test_tiles_cover_every_pixel_and_stay_inside(
    height: int, width: int, tile: tuple[int, int], overlap: float
) -> None:
    layout = layout_of(height, width, tile, overlap)
    covered = np.zeros(layout.size, int)
    for top, left in layout.corners:
        assert 0 <= top <= layout.size[0] - tile[0]
        assert 0 <= left <= layout.size[1] - tile[1]
        covered[top : top + tile[0], left : left + tile[1]] += 1
    assert covered.min() >= 1
    assert len(set(layout.corners)) == len(layout.corners)
    assert list(layout.corners) == sorted(layout.corners)


@settings(deadline=None)
@given(height=SIDES, width=SIDES, tile=TILES, overlap=OVERLAPS)
def test_neighbours_overlap_by_what_was_asked_with_no_tile_to_spare(
    height: int, width: int, tile: tuple[int, int], overlap: float
) -> None:
    layout = layout_of(height, width, tile, overlap)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in layout.corners})
        shared = [start + tile[axis] - after for start, after in itertools.pairwise(starts)]
        if shared:
            assert min(shared) >= min(overlap * tile[axis], tile[axis] - 1) - 1e-9
            # one tile fewer would not do: its neighbours lay further apart than the overlap allows
            apart = (layout.size[axis] - tile[axis]) / max(1, len(starts) - 2)
            assert len(starts) == 2 or apart > tile[axis] - overlap * tile[axis] - 1 - 1e-9
        assert len(layout.corners) == len({c[0] for c in layout.corners}) * len({c[1] for c in layout.corners})


@pytest.mark.parametrize("config", [tiled((64, 96), 0.25), DetectorConfig(input_size=(64, 96)).input])
def test_an_image_of_the_input_size_is_one_tile_and_its_map_is_untouched(config: InputConfig) -> None:
    layout = Layout.of((64, 96), config)
    assert layout.corners == ((0, 0),)
    image_3HW = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    assert torch.equal(layout.cut(image_3HW)[0], image_3HW)
    map_1HW = torch.rand(1, 64, 96)
    assert torch.equal(layout.blend(map_1HW), map_1HW[0])


def cut_maps(map_HW: Tensor, layout: Layout) -> Tensor:
    height, width = layout.tile
    return torch.stack([map_HW[top : top + height, left : left + width] for top, left in layout.corners])


@settings(deadline=None, max_examples=50)
@given(height=SIDES, width=SIDES, tile=TILES, overlap=OVERLAPS, value=st.floats(0, 1, width=32, exclude_max=True))
def test_constant_tiles_blend_into_that_constant(
    height: int, width: int, tile: tuple[int, int], overlap: float, value: float
) -> None:
    layout = layout_of(height, width, tile, overlap)
    map_HW = layout.blend(torch.full((len(layout.corners), *tile), value))
    assert map_HW.shape == layout.size
    assert map_HW.max() < 1
    torch.testing.assert_close(map_HW, torch.full(layout.size, value), rtol=0, atol=2**-24)


@settings(deadline=None, max_examples=50)
@given(height=SIDES, width=SIDES, tile=TILES, overlap=OVERLAPS, seed=st.integers(0, 99))
def test_tiles_cut_from_one_map_blend_into_it(
    height: int, width: int, tile: tuple[int, int], overlap: float, seed: int
) -> None:
    layout = layout_of(height, width, tile, overlap)
    map_HW = torch.rand(layout.size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layout.blend(cut_maps(map_HW, layout)), map_HW, rtol=0, atol=2**-24)


def test_a_pixel_listens_most_to_the_tile_whose_middle_it_is_nearest() -> None:
    """Two tiles of a constant each: from one to the other the map changes steadily, without a seam."""
    layout = Layout.of((64, 96), tiled((64, 64), 0.5))
    assert layout.corners == ((0, 0), (0, 32))
    map_HW = layout.blend(torch.stack([torch.zeros(64, 64), torch.full((64, 64), 0.5)]))
    row_W = map_HW[20]
    assert torch.equal(row_W[:32], torch.zeros(32))
    torch.testing.assert_close(row_W[64:], torch.full((32,), 0.5))
    steps = row_W[31:65].diff()
    assert (steps > 0).all()
    assert steps.max() < 0.5 / 16
    assert row_W[47] == pytest.approx(0.25, abs=0.01)


def test_the_tiles_of_an_image_are_its_pixels() -> None:
    image_3HW = torch.randint(0, 256, (3, 100, 130), dtype=torch.uint8)
    layout = Layout.of((100, 130), tiled((48, 64), 0.2))
    tiles = layout.cut(image_3HW)
    assert tiles.shape == (len(layout.corners), 3, 48, 64)
    for tile, (top, left) in zip(tiles, layout.corners, strict=True):
        assert torch.equal(tile, image_3HW[:, top : top + 48, left : left + 64])
