"""Fixtures of the data tests: an empty tree on every kind of storage, and pictures in every format."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cflow_ray.store.storage import Storage
from tests.stores import empty_tree

Encode = Callable[..., bytes]


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """An empty tree: a local folder and, with the same test, fsspec's memory."""
    yield from empty_tree(request.param, request)


@pytest.fixture(scope="session")
def encode() -> Encode:
    """The bytes of a picture in a format of Pillow's."""

    def encode_image(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode_image


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """RGB pixels (24, 40, 3) without any symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[0:24, 0:40]
    return np.stack([6 * x, 10 * y, 3 * x + 5 * y], axis=2).astype(np.uint8)
