"""Loading: the order of the samples, an error in place of a bad image, and only a few images ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cflow_ray.config import DetectorConfig, InputConfig
from cflow_ray.data.images import PreparedImage, prepare
from cflow_ray.data.loading import load_images
from cflow_ray.data.samples import TRAIN, Sample
from cflow_ray.errors import ImageError, StorageError
from cflow_ray.store.storage import Storage

Encode = Callable[..., bytes]


def square(side: int) -> InputConfig:
    """An input of this side, everything else as it is by default."""
    return DetectorConfig(input_size=side).input


@pytest.fixture
def samples(storage: Storage, encode: Encode) -> list[Sample]:
    """Forty images, each of one grey that is its number; image 7 is damaged and image 8 empty."""
    found = []
    for number in range(40):
        path = f"c/train/good/{number}.png"
        content = encode(np.full((8, 8), number, np.uint8))
        storage.write(path, content[:30] if number == 7 else b"" if number == 8 else content)
        found.append(Sample(path, "c", TRAIN, 0))
    return found


def test_every_sample_comes_with_its_own_image_in_order(storage: Storage, samples: list[Sample]) -> None:
    loaded = list(load_images(storage, samples, square(32)))
    assert [sample for sample, _ in loaded] == samples
    for number, (sample, image) in enumerate(loaded):
        if number in (7, 8):
            assert isinstance(image, ImageError)
        else:
            assert isinstance(image, PreparedImage)
            assert np.array_equal(image.pixels_3HW, prepare(storage.read(sample.image), square(32)).pixels_3HW)
            assert np.unique(image.pixels_3HW).tolist() == [number]


class SlowForSome(Storage):
    """Storage on which the first files take longest."""

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        time.sleep(max(0.0, 0.02 - 0.004 * int(path.rpartition("/")[2].removesuffix(".png"))))
        return super().read(path, start, end)


def test_the_order_does_not_depend_on_how_long_each_takes(storage: Storage, samples: list[Sample]) -> None:
    loaded = load_images(SlowForSome(storage.uri), samples[:7], square(32))
    assert [sample for sample, _ in loaded] == samples[:7]


def test_only_a_few_are_read_ahead_of_the_reader(storage: Storage, samples: list[Sample]) -> None:
    taken = 0

    def endless() -> Iterator[Sample]:
        nonlocal taken
        while True:
            taken += 1
            yield samples[0]

    loaded = load_images(storage, endless(), square(32))
    for _ in range(50):
        next(loaded)
    assert 50 < taken < 50 + 32
    loaded.close()  # type: ignore[attr-defined]


def test_no_thread_stays_behind(storage: Storage, samples: list[Sample]) -> None:
    before = threading.active_count()
    loaded = load_images(storage, samples, square(32))
    next(loaded)
    loaded.close()  # type: ignore[attr-defined]
    list(load_images(storage, samples, square(32)))
    assert threading.active_count() <= before


def test_a_file_that_cannot_be_fetched_is_raised_by_name(storage: Storage, samples: list[Sample]) -> None:
    storage.remove(samples[20].image)
    loaded = load_images(storage, samples, square(32))
    assert [sample for sample, _ in (next(loaded) for _ in range(20))] == samples[:20]
    with pytest.raises(StorageError, match=r"c/train/good/20\.png does not exist"):
        next(loaded)


def test_no_sample_gives_no_image(storage: Storage) -> None:
    assert list(load_images(storage, [], square(32))) == []
