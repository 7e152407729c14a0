"""Heat maps leave normal pixels as they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cflow_ray.evaluation.heat_maps import heat_map_panel, overlay


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_overlay_keeps_pixels_up_to_the_floor_and_changes_those_above(image: NDArray[np.uint8]) -> None:
    map_HW = np.linspace(0, 0.999, 40 * 60, dtype=np.float32).reshape(40, 60)
    floor = float(map_HW[20, 0])
    drawn = overlay(image, map_HW, floor)
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[map_HW <= floor], image[map_HW <= floor])
    clearly = map_HW > floor + 0.05
    assert (drawn[clearly] != image[clearly]).any(1).mean() > 0.99


def test_overlay_reddens_with_the_map_and_lets_the_image_through() -> None:
    grey_HW3 = np.full((1, 50, 3), 128, np.uint8)
    map_HW = np.linspace(0.5, 0.999, 50, dtype=np.float32)[None]
    drawn = overlay(grey_HW3, map_HW, floor=0.4).astype(int)[0]
    green = drawn[10:, 1]
    assert (np.diff(green) <= 0).all()
    assert green[0] - green[-1] > 50
    black = overlay(np.zeros_like(grey_HW3), map_HW, floor=0.4).astype(int)[0]
    assert ((drawn - black)[-1] > 0.3 * 128).all()


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
def test_overlay_of_a_map_below_the_floor_is_the_image(image: NDArray[np.uint8], floor: float) -> None:
    drawn = overlay(image, np.full((40, 60), floor, np.float32), floor)
    np.testing.assert_array_equal(drawn, image)


def panel(image: NDArray[np.uint8], mask_HW: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    content = heat_map_panel(image, np.zeros((40, 60), np.float32), 0.5, mask_HW, "screw 0.97")
    with Image.open(io.BytesIO(content)) as decoded:
        assert decoded.format == "PNG"
        assert decoded.mode == "RGB"
        return np.array(decoded)


def test_panel_shows_image_heat_map_and_truth_side_by_side(image: NDArray[np.uint8]) -> None:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[10:20, 15:30] = True
    with_truth, without = panel(image, mask_HW), panel(image, None)
    assert with_truth.shape[0] == without.shape[0] > 40
    assert with_truth.shape[1] == 3 * 60 + 2 * 4
    assert without.shape[1] == 2 * 60 + 4
    for shown in (with_truth, without):
        np.testing.assert_array_equal(shown[-40:, :60], image)
        np.testing.assert_array_equal(shown[-40:, 64:124], image)  # nothing above the floor
        assert (shown[:-40] < 128).any()  # the caption


def outlined(image: NDArray[np.uint8], mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray((panel(image, mask_HW)[-40:, -60:] != image).any(2))


def test_outline_is_the_edge_of_the_mask(image: NDArray[np.uint8]) -> None:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[10:20, 15:30] = True
    expected = mask_HW.copy()
    expected[11:19, 16:29] = False
    np.testing.assert_array_equal(outlined(image, mask_HW), expected)


def test_a_defect_at_the_images_edge_is_outlined_too(image: NDArray[np.uint8]) -> None:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[0, 5:50] = True
    mask_HW[20:30, 59] = True
    np.testing.assert_array_equal(outlined(image, mask_HW), mask_HW)


def test_a_defect_that_fills_the_image_is_framed(image: NDArray[np.uint8]) -> None:
    frame = np.ones((40, 60), bool)
    frame[1:-1, 1:-1] = False
    np.testing.assert_array_equal(outlined(image, np.ones((40, 60), bool)), frame)
