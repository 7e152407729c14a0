"""The demo data: layout, determinism, disjoint regions, exact masks, no network."""

from __future__ import annotations

import io
import math
import socket
from functools import partial
from importlib import metadata
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from cflow_ray.data import synthetic
from cflow_ray.data.synthetic import (
    CATEGORIES,
    DEFECTS,
    SOURCES,
    DemoSize,
    defective_images,
    demo_files,
    draw_defect,
    normal_images,
)
from cflow_ray.errors import ConfigError

SMALL = DemoSize(train=3, test_good=2, test_per_defect=1, side=64)


def _mask_of(path: str) -> str:
    category, _, kind, name = path.split("/")
    return f"{category}/ground_truth/{kind}/{name.removesuffix('.png')}_mask.png"


def test_the_layout_is_mvtec_ads():
    files = dict(demo_files(("brick", "stars"), SMALL))
    expected = {f"{category}/train/good/{index:03d}.png" for category in ("brick", "stars") for index in range(3)}
    expected |= {f"{category}/test/good/{index:03d}.png" for category in ("brick", "stars") for index in range(2)}
    defective = {f"{category}/test/{kind}/000.png" for category in ("brick", "stars") for kind in DEFECTS}
    assert set(files) == expected | defective | {_mask_of(path) for path in defective}
    for path in defective:
        mask = np.asarray(Image.open(io.BytesIO(files[_mask_of(path)])))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}


def test_the_default_counts():
    size = DemoSize()
    assert (size.train, size.test_good, size.test_per_defect, size.side) == (120, 24, 8, 256)
    assert len(CATEGORIES) == 5
    assert DEFECTS == ("crack", "foreign", "hole", "scratch", "stain")


def test_same_arguments_same_bytes_and_another_seed_other_bytes():
    first, again, other = (dict(demo_files(("gravel",), SMALL, seed)) for seed in (7, 7, 8))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[path] != other[path] for path in first)


def test_a_category_does_not_depend_on_the_others_asked_for():
    alone = dict(demo_files(("tissue",), SMALL))
    among = dict(demo_files(CATEGORIES, SMALL))
    assert alone.items() <= among.items()


def test_more_images_begin_with_the_same_ones():
    few, more = list(normal_images("grass", 2, "train", side=64)), list(normal_images("grass", 4, "train", side=64))
    assert all(np.array_equal(a, b) for a, b in zip(few, more[:2], strict=True))


def test_the_images_of_a_stream_differ():
    images = list(normal_images("brick", 6, "test", side=64))
    assert len({image.tobytes() for image in images}) == 6


@pytest.mark.parametrize("category", CATEGORIES)
def test_regions_lie_in_the_photograph_and_share_no_pixel(category: str):
    source = SOURCES[category]
    with synthetic.source_file(category).open("rb") as stream:
        width, height = Image.open(stream).size
    covered = np.zeros((height, width), int)
    for left, top, right, bottom in (source.train, source.test):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1


@pytest.mark.parametrize("region", ["train", "test"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_crop_reads_only_its_region(category: str, region: str):
    """A photograph that is 1 inside the region and 0 outside gives crops of ones: the resampling itself is the oracle."""
    source = SOURCES[category]
    left, top, right, bottom = source.train if region == "train" else source.test
    with synthetic.source_file(category).open("rb") as stream:
        width, height = Image.open(stream).size
    inside = np.zeros((height, width), np.float32)
    inside[top:bottom, left:right] = 1
    photograph = Image.fromarray(inside)
    generator = np.random.default_rng(0)
    for _ in range(100):
        crop = np.asarray(synthetic.cut(photograph, synthetic.sample_pose(source, region, generator), 32))
        np.testing.assert_allclose(crop, 1, atol=1e-5)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_pose_keeps_its_four_corners_in_the_region(category: str):
    source, generator = SOURCES[category], np.random.default_rng(1)
    left, top, right, bottom = source.test
    for _ in range(500):
        pose = synthetic.sample_pose(source, "test", generator)
        assert abs(pose.side / source.window - 1) <= synthetic.SCALE
        for quarter in range(4):
            direction = pose.angle + math.pi / 4 + quarter * math.pi / 2
            x = pose.x + pose.side / math.sqrt(2) * math.cos(direction)
            y = pose.y + pose.side / math.sqrt(2) * math.sin(direction)
            assert left + 2 <= x + 1e-6
            assert x - 1e-6 <= right - 2
            assert top + 2 <= y + 1e-6
            assert y - 1e-6 <= bottom - 2


def test_an_upright_crop_at_scale_one_is_the_photograph():
    pixels = np.random.default_rng(2).integers(0, 256, (60, 80), dtype=np.uint8)
    crop = synthetic.cut(Image.fromarray(pixels), synthetic.Pose(40.0, 30.0, 32.0, 0.0, 1, 1), 32)
    np.testing.assert_array_equal(np.asarray(crop), pixels[14:46, 24:56])
    flipped = synthetic.cut(Image.fromarray(pixels), synthetic.Pose(40.0, 30.0, 32.0, 0.0, -1, 1), 32)
    np.testing.assert_array_equal(np.asarray(flipped), pixels[14:46, 24:56][:, ::-1])


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_masks_are_exact(category: str, kind: str):
    """Outside the mask nothing changes; inside nearly every pixel does, by more than the sensor's noise on average."""
    generator = np.random.default_rng(3)
    white = partial(np.full, (256, 256, 3), 240, np.uint8)
    for image in normal_images(category, 4, "test", seed=5):
        untouched = image.copy()
        damaged, mask = draw_defect(image, kind, generator, lambda _: white())
        np.testing.assert_array_equal(image, untouched)
        assert damaged.shape == image.shape
        assert (damaged.dtype, mask.dtype) == (np.uint8, np.uint8)
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(damaged[mask == 0], image[mask == 0])
        change = np.abs(damaged.astype(int) - image)[mask > 0].max(axis=1)
        assert (change > 0).mean() > 0.95
        assert change.mean() > 15
        assert 0.0008 < (mask > 0).mean() < 0.25


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_vary_in_size_and_place(kind: str):
    masks = [mask > 0 for _, mask in islice(defective_images("brick", kind, side=128), 8)]
    areas = [int(mask.sum()) for mask in masks]
    places = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    assert max(areas) > 1.3 * min(areas)
    assert places.std(axis=0).min() > 5


@pytest.mark.parametrize(("category", "mode"), [("brick", "L"), ("tissue", "RGB")])
def test_grey_surfaces_stay_grey_and_are_written_with_one_channel(category: str, mode: str):
    modes = {Image.open(io.BytesIO(data)).mode for path, data in demo_files((category,), SMALL) if "_mask" not in path}
    assert modes == {mode}


def test_a_defect_can_be_drawn_on_any_image():
    grey = np.full((100, 100, 3), 120, np.uint8)
    for kind in DEFECTS:
        damaged, mask = draw_defect(grey, kind, np.random.default_rng(4), lambda _: np.full_like(grey, 240))
        assert mask.any()
        assert (damaged[..., 0] == damaged[..., 2]).all()


def test_every_photograph_is_a_file_of_the_scikit_image_wheel():
    """The wheel's own list of files names it, so nothing was fetched, now or earlier."""
    wheel = {str(file.locate()) for file in metadata.files("scikit-image") or []}
    assert all(str(synthetic.source_file(category)) in wheel for category in CATEGORIES)


def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the demo data opened a socket")

    synthetic._photograph.cache_clear()
    monkeypatch.setattr(socket, "socket", refuse)
    assert dict(demo_files(CATEGORIES, DemoSize(1, 1, 1, 32)))


def test_misuse_is_told_in_one_line():
    with pytest.raises(ConfigError, match=r"'brik'.*brick, grass"):
        next(demo_files(("brick", "brik"), SMALL))
    with pytest.raises(ConfigError, match=r"'brik'"):
        next(normal_images("brik", 1, "train"))
    with pytest.raises(ConfigError, match=r"'dent'.*crack, foreign"):
        draw_defect(
            np.zeros((64, 64, 3), np.uint8), "dent", np.random.default_rng(0), lambda _: np.zeros((64, 64, 3), np.uint8)
        )
    with pytest.raises(ConfigError, match="at least 32"):
        DemoSize(side=8)
