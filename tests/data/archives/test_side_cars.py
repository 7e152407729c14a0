"""Which image a side-car speaks of: that of its name, or else the only one of its sample; alike however a tar is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.data.archives import Member
from cflow_ray.data.archives.side_cars import owners_of
from tests.data.archives.conftest import ReadTar
from tests.tars import tar_of


def fields_by_key(read_tar: ReadTar, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The fields of every record of a tar whose JSON files each say their own name, in the order of the records."""
    contents = [
        (name, json.dumps({"of": name}).encode() if name.endswith(".json") else name.encode()) for name in names
    ]
    records = read_tar(tar_of(contents))
    expected = dict(contents)
    assert all(record.content == expected[record.key] for record in records)
    return {record.key: dict(record.fields) for record in records}


def frames(count: int, image_first: bool) -> list[str]:
    endings = ("png", "json") if image_first else ("json", "png")
    return [f"cam1/cam1.{number:03}.{ending}" for number in range(count) for ending in endings]


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize("count", [2, 8, 9, 40])
def test_images_whose_names_have_dots_keep_their_own_side_cars(
    read_tar: ReadTar, count: int, image_first: bool
) -> None:
    found = fields_by_key(read_tar, frames(count, image_first))
    assert list(found.items()) == [
        (f"cam1/cam1.{number:03}.png", {"of": f"cam1/cam1.{number:03}.json"}) for number in range(count)
    ]


def test_every_kind_of_side_car_is_its_images(read_tar: ReadTar) -> None:
    names = [f"c.{number:02}.{ending}" for number in range(20) for ending in ("json", "png", "cls", "txt")]
    found = fields_by_key(read_tar, names)
    assert found == {
        f"c.{n:02}.png": {"of": f"c.{n:02}.json", "cls": f"c.{n:02}.cls", "txt": f"c.{n:02}.txt"} for n in range(20)
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["x.mask.png", "x.json"], {"x.mask.png": "x.json"}, id="the sample's only image"),
        pytest.param(["x.json", "x.mask.png", "y.png"], {"x.mask.png": "x.json", "y.png": None}, id="behind it"),
        pytest.param(["x.png", "x.meta.json"], {"x.png": "x.meta.json"}, id="a longer name"),
        pytest.param(["x.json", "x.mask.png", "x.png"], {"x.mask.png": None, "x.png": "x.json"}, id="the name first"),
        pytest.param(["x.png", "x.json", "x.meta.json"], {"x.png": "x.json"}, id="the name before a longer one"),
        pytest.param(["x.meta.json", "x.json", "x.png"], {"x.png": "x.json"}, id="in any order"),
        pytest.param(["x.png", "x.jpg", "x.json"], {"x.png": "x.json", "x.jpg": "x.json"}, id="two of the name"),
        pytest.param(
            ["x.a.png", "x.b.png", "x.json"], {"x.a.png": None, "x.b.png": None, "x.json": None}, id="neither"
        ),
        pytest.param(["v1.2/x.png", "v1.3/x.json"], {"v1.2/x.png": None, "v1.3/x.json": None}, id="dots of folders"),
        pytest.param(["json.png", "json"], {"json.png": None, "json": None}, id="no extension"),
    ],
)
def test_a_side_car_speaks_of(read_tar: ReadTar, names: list[str], expected: dict[str, str | None]) -> None:
    found = fields_by_key(read_tar, names)
    assert found == {key: {} if side is None else {"of": side} for key, side in expected.items()}


def test_a_side_car_of_a_large_sample_speaks_of_no_image_that_only_begins_like_it(read_tar: ReadTar) -> None:
    extras = [f"c.1.{number}.txt" for number in range(40)]  # the first image leaves long before the last of them comes
    names = ["c.0.png", "c.1.png", *extras]
    found = fields_by_key(read_tar, names)
    assert list(found) == names
    assert not any(found.values())


NAMES = [f"{stem}.{ending}" for stem in ("a", "a.0", "a.1", "b", "b.0") for ending in ("png", "jpg", "json", "bin")]


@settings(max_examples=200, deadline=None)
@given(names=st.permutations(NAMES).flatmap(lambda names: st.integers(0, len(names)).map(lambda n: names[:n])))
def test_a_side_car_has_an_owner_where_one_name_fits_and_is_a_record_elsewhere(names: list[str]) -> None:
    images = [name for name in names if name.endswith(("png", "jpg"))]
    for name, owner in zip(names, owners_of([Member(name) for name in names]), strict=True):
        stem = name.removesuffix(".json")
        same = {image[:-4] for image in images} & {stem}
        alike = [image for image in images if image.split(".")[0] == name.split(".")[0]]
        expected = stem if same else alike[0][:-4] if len(alike) == 1 else None
        assert owner == (expected if name.endswith(".json") else None)
