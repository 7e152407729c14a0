"""Judged maps to test the figures of localisation on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]
Inspection = Callable[..., tuple[Maps, Masks]]


@pytest.fixture
def inspection() -> Inspection:
    """Makes maps that find the defects of six images in part; two images are good, one has two defects."""

    def make(seed: int = 0, size: tuple[int, int] = (40, 50)) -> tuple[Maps, Masks]:
        rng = np.random.default_rng(seed)
        maps, masks = [], []
        for number in range(6):
            mask = np.zeros(size, dtype=bool)
            if number >= 2:
                mask[5 : 9 + 4 * number, 10 : 12 + number] = True
            if number == 3:
                mask[30:34, 30:45] = True
            maps.append(np.clip(0.2 + 0.1 * rng.standard_normal(size) + 0.25 * mask, 0, 0.999).astype(np.float32))
            masks.append(mask)
        return maps, masks

    return make
