"""Every row of a score table comes to the right category, version and day, in whatever order and pieces."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.config import DriftConfig
from cflow_ray.errors import CheckpointError
from cflow_ray.evaluation.comparison import Reference
from cflow_ray.evaluation.days import COLUMNS, DayRows, Group, day_of
from cflow_ray.evaluation.drift import report_of
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.origin import Origin

MONDAY = date(2026, 11, 23)
SCREWS = Group("screw", "v1-aaaaaa", MONDAY)
CONFIG = DriftConfig(results=("r",))
ROW: dict[str, Any] = {
    "category": "screw",
    "checkpoint": "v1-aaaaaa",
    "key": "screw/2026-11-23/0.png",
    "score": 0.5,
    "p_value": 0.5,
    "error": None,
}
FAILED = {"checkpoint": None, "score": None, "p_value": None, "error": "empty file"}
ORIGIN = Origin(MONDAY, "r", {"screw": "v1-aaaaaa"})
REFERENCE = Reference(Calibration.of([0.0], np.linspace(0.01, 0.99, 99)), 0.05)


def table(*rows: dict[str, Any]) -> pa.Table:
    schema = [(name, pa.float64() if name in ("score", "p_value") else pa.string()) for name in COLUMNS]
    return pa.Table.from_pylist([ROW | row for row in rows], schema=pa.schema(schema))


def gathered(*tables: pa.Table, origin: Origin | None = ORIGIN, **settings: Any) -> DayRows:
    rows = DayRows(**settings)
    for one in tables:
        rows.add(one, origin, lambda category, version: REFERENCE)
    return rows


def counts(rows: DayRows) -> dict[Group, tuple[int, int]]:
    return {group: (of_group.images, of_group.errors) for group, of_group in rows.groups.items()}


def test_rows_of_other_versions_and_days_are_groups_of_their_own() -> None:
    rows = gathered(
        table({}, {"checkpoint": "v2-bbbbbb"}, {"key": "screw/20261124/1.png"}, {"category": "pill"}, {}),
        day_pattern="/{day}/",
    )
    assert counts(rows) == {
        Group("screw", "v1-aaaaaa", MONDAY): (2, 0),
        Group("screw", "v2-bbbbbb", MONDAY): (1, 0),
        Group("screw", "v1-aaaaaa", date(2026, 11, 24)): (1, 0),
        Group("pill", "v1-aaaaaa", MONDAY): (1, 0),
    }


def test_without_a_pattern_a_row_is_of_the_day_of_its_table() -> None:
    assert counts(gathered(table({"key": "screw/2020-01-01/0.png"}))) == {SCREWS: (1, 0)}


def test_errors_are_counted_with_the_version_that_would_have_scored_them() -> None:
    rows = gathered(table({}, FAILED, FAILED, {"score": None}))
    assert counts(rows) == {SCREWS: (1, 3)}
    assert rows.groups[SCREWS].scores.images == 1  # type: ignore[union-attr]
    assert rows.unassigned == 0


def test_errors_of_no_known_version_are_counted_apart() -> None:
    rows = gathered(table(FAILED | {"category": None}, FAILED | {"category": "pill"}))
    assert (counts(rows), rows.unassigned) == ({}, 2)
    assert gathered(table(FAILED), origin=None, day_pattern="/{day}/").unassigned == 1


def test_rows_whose_key_names_no_day_are_undated() -> None:
    rows = gathered(table({"key": "screw/b.png"}, {"key": "screw/a.png"}, {}), day_pattern="/{day}/")
    assert (rows.undated, rows.undated_example) == (2, "screw/a.png")
    assert counts(rows) == {SCREWS: (1, 0)}


def test_other_categories_can_be_left_out() -> None:
    rows = gathered(table({}, {"category": "pill"}, {"category": "pill", "key": "x"}), only=["screw"])
    assert counts(rows) == {SCREWS: (1, 0)}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_neither_the_parts_nor_their_order_matter(data: st.DataObject) -> None:
    rng = np.random.default_rng(30)
    rows = [
        {"category": ["screw", "pill"][number % 2], "score": score, "p_value": REFERENCE.calibration.p_value(score)}
        for number, score in enumerate(rng.random(120))
    ] + [FAILED, {"key": "z"}, {"key": "y"}]
    order = data.draw(st.permutations(range(len(rows))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = np.split(np.array(order), cuts)
    whole = gathered(table(*rows), day_pattern="/{day}/")
    cut = gathered(*(table(*(rows[number] for number in part)) for part in parts), day_pattern="/{day}/")
    assert report_of(cut, CONFIG).as_dict() == report_of(whole, CONFIG).as_dict()


def test_a_version_without_calibration_is_unknown_and_the_rest_is_judged() -> None:
    rows = DayRows()

    def reference_of(category: str, version: str) -> Reference:
        if category == "pill":
            raise CheckpointError("no version 'v9' of 'pill'")
        return REFERENCE

    scores = np.linspace(0.005, 0.995, 100)
    known = [{"score": score, "p_value": REFERENCE.calibration.p_value(score)} for score in scores]
    rows.add(table(*known, *(row | {"category": "pill"} for row in known[:7])), ORIGIN, reference_of)
    pill, screw = report_of(rows, CONFIG).days
    assert (pill.verdict, pill.reason, pill.images) == ("unknown", "no version 'v9' of 'pill'", 7)
    assert (screw.verdict, screw.images) == ("ok", 100)


# days


@pytest.mark.parametrize(
    ("key", "pattern", "day"),
    [
        ("line3/2026-11-23/0.png", "line3/{day}/", MONDAY),
        ("line3/20261123/0.png", "line3/{day}/", MONDAY),
        ("screw/line3/20261123/0.png", "line3/{day}/", MONDAY),
        ("screw/cam1_20261123T0315.png", "_{day}T", MONDAY),
        ("20261123.png", "{day}", MONDAY),
        ("a.b/20261123/x", "a.b/{day}", MONDAY),
        ("serial-20269999/20261123/0.png", "{day}", MONDAY),
        ("20261122/x/20261123/0.png", "{day}", date(2026, 11, 22)),
        ("line3/0.png", "line3/{day}/", None),
        ("line4/2026-11-23/0.png", "line3/{day}/", None),
        ("line3/2026-02-30/0.png", "line3/{day}/", None),
        ("line3/2026-1123/0.png", "line3/{day}/", None),
        ("line3/120261123/0.png", "{day}", None),
        ("line3/202611231/0.png", "{day}", None),
        ("line3/٢٠٢٦١١٢٣/0.png", "{day}", None),
        ("aXb/20261123/x", "a.b/{day}", None),
        ("", "{day}", None),
    ],
)
def test_the_day_of_a_key(key: str, pattern: str, day: date | None) -> None:
    assert day_of(key, pattern) == day
