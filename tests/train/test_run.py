"""The names of runs."""

from __future__ import annotations

import pytest

from cflow_ray.train.run import run_name


@pytest.mark.parametrize(
    ("categories", "name"),
    [
        (["screw"], "fit-1-screw"),
        (["screw", "metal nut", "größe/2"], "fit-1-screw-metal_nut-größe_2"),
        ([f"c{number}" for number in range(5)], "fit-1-c0-c1-c2-c3-c4"),
        ([f"c{number}" for number in range(15)], "fit-1-c0-c1-c2-c3-c4-and-10-more"),
    ],
)
def test_a_run_is_called_after_its_categories(categories: list[str], name: str) -> None:
    assert run_name("fit-1", categories) == name
