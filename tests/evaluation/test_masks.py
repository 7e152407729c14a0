"""Masks as the evaluation reads them: class numbers, folders of masks, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cflow_ray.data.images import encode_png
from cflow_ray.data.samples import Sample
from cflow_ray.errors import DataError
from cflow_ray.evaluation.evaluate import read_mask
from cflow_ray.store.storage import Storage

SIZE = (4, 6)


def part(row: int, value: int) -> NDArray[np.uint8]:
    pixels_HW = np.zeros(SIZE, np.uint8)
    pixels_HW[row] = value
    return pixels_HW


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    storage.write("c/ground_truth/logical/000/000.png", encode_png(part(0, 255)))
    storage.write("c/ground_truth/logical/000/001.PNG", encode_png(part(2, 3)))
    storage.write("c/ground_truth/logical/000/notes.txt", b"")
    storage.write("c/ground_truth/logical/0001/000.png", encode_png(part(3, 255)))
    return storage


def anomaly(mask: str) -> Sample:
    return Sample("c/test/logical/000.png", "c", "test", 1, "logical", mask)


def test_a_folder_of_masks_is_their_union(root: Storage):
    mask_HW = read_mask(root, anomaly("c/ground_truth/logical/000/"), SIZE)
    np.testing.assert_array_equal(mask_HW, (part(0, 1) + part(2, 1)).astype(bool))


def test_a_number_of_a_class_is_defect(root: Storage):
    mask_HW = read_mask(root, anomaly("c/ground_truth/logical/000/001.PNG"), SIZE)
    np.testing.assert_array_equal(mask_HW, part(2, 1).astype(bool))


def test_an_empty_folder_of_masks_is_named(root: Storage):
    with pytest.raises(DataError, match=r"logical/002/ holds no image"):
        read_mask(root, anomaly("c/ground_truth/logical/002/"), SIZE)
