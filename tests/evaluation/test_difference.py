"""The difference of two score tables: against a plain join in Python, and where names do not tell images apart."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.config import DiffConfig
from cflow_ray.errors import DataError
from cflow_ray.evaluation.difference import CHANGES, SAME, compare, diff
from cflow_ray.evaluation.report import difference_report
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("category", pa.string()),
        ("is_anomaly", pa.bool_()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("checkpoint", pa.string()),
    ]
)

Row = dict[str, Any]


def scored(key: str, is_anomaly: bool, score: float, checkpoint: str = "v1") -> Row:
    category = key.partition("/")[0]
    return {
        "key": key,
        "category": category,
        "is_anomaly": is_anomaly,
        "score": score,
        "p_value": 1 - score,
        "checkpoint": checkpoint,
    }


def failed(key: str) -> Row:
    return dict.fromkeys(SCHEMA.names) | {"key": key, "category": key.partition("/")[0]}


def table(*rows: Row) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


A = [
    scored("screw/same", True, 0.9),
    scored("screw/worse", False, 0.1),
    scored("screw/better", True, 0.8),
    scored("pill/broken", False, 0.2),
    failed("pill/mended"),
    failed("pill/never"),
    scored("pill/gone", True, 0.7),
]
B = [
    scored("pill/new", False, 0.1, "v2"),
    failed("pill/never"),
    scored("pill/mended", False, 0.3, "v2"),
    failed("pill/broken"),
    scored("screw/better", False, 0.2, "v2"),
    scored("screw/worse", True, 0.95, "v2"),
    scored("screw/same", True, 0.9, "v2"),
]
EXPECTED = {
    "pill/broken": "error_in_b",
    "pill/gone": "only_in_a",
    "pill/mended": "error_in_a",
    "pill/new": "only_in_b",
    "screw/better": "anomaly_to_ok",
    "screw/worse": "ok_to_anomaly",
}


def test_every_change_has_its_word_and_its_count() -> None:
    difference = compare(table(*A), table(*B))
    assert {row["key"]: row["change"] for row in difference.changed.to_pylist()} == EXPECTED
    assert difference.changed["key"].to_pylist() == sorted(EXPECTED)
    assert difference.total == {SAME: 2, **dict.fromkeys(CHANGES, 1)}
    assert {category: sum(counts.values()) for category, counts in difference.counts.items()} == {"pill": 5, "screw": 3}
    assert difference.counts["screw"] == dict.fromkeys((SAME, *CHANGES), 0) | {
        SAME: 1,
        "ok_to_anomaly": 1,
        "anomaly_to_ok": 1,
    }
    assert difference.differs


def test_a_change_comes_with_both_sides() -> None:
    difference = compare(table(*A), table(*B))
    (worse,) = [row for row in difference.changed.to_pylist() if row["key"] == "screw/worse"]
    assert worse == {
        "key": "screw/worse",
        "category": "screw",
        "change": "ok_to_anomaly",
        "score_a": 0.1,
        "score_b": 0.95,
        "p_value_a": 0.9,
        "p_value_b": pytest.approx(0.05),
        "checkpoint_a": "v1",
        "checkpoint_b": "v2",
    }


def test_the_largest_changes_of_score_come_first() -> None:
    difference = compare(table(*A), table(*B))
    moved = difference.moved(10)
    assert moved["key"].to_pylist() == ["screw/worse", "screw/better"]
    assert moved["score_change"].to_pylist() == pytest.approx([0.85, -0.6])
    assert difference.moved(1)["key"].to_pylist() == ["screw/worse"]
    assert difference.moved(0).num_rows == 0


def test_a_table_does_not_differ_from_itself() -> None:
    difference = compare(table(*A), table(*reversed(A)))
    assert difference.total == {SAME: len(A), **dict.fromkeys(CHANGES, 0)}
    assert not difference.differs
    assert difference.moved(5).num_rows == 0


def test_other_scores_alone_are_no_change() -> None:
    difference = compare(table(scored("k", True, 0.8)), table(scored("k", True, 0.9)))
    assert not difference.differs
    assert difference.moved(5).num_rows == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_names_that_come_more_than_once_are_told_and_not_multiplied(swapped: bool) -> None:
    many = table(scored("k", True, 0.1), scored("k", True, 0.2), scored("l", True, 0.3), failed("k"))
    few = table(scored("k", False, 0.1), scored("l", True, 0.3))
    difference = compare(few, many) if swapped else compare(many, few)
    assert difference.duplicates == ("k",)
    assert difference.images["key"].to_pylist() == ["l"]
    assert difference.differs


def test_empty_tables_have_no_difference() -> None:
    assert not compare(table(), table()).differs
    assert compare(table(), table(scored("k", True, 0.1))).total["only_in_b"] == 1


ROWS = st.dictionaries(
    st.sampled_from([f"{category}/{n}" for category in ("pill", "screw") for n in range(6)]),
    st.none() | st.tuples(st.booleans(), st.floats(0, 1)),
)


@settings(max_examples=200, deadline=None)
@given(a=ROWS, b=ROWS)
def test_it_agrees_with_a_join_in_python(a: dict[str, Any], b: dict[str, Any]) -> None:
    def change(key: str) -> str:
        if key not in b:
            return "only_in_a"
        if key not in a:
            return "only_in_b"
        if a[key] is None or b[key] is None:
            return SAME if a[key] == b[key] else "error_in_a" if a[key] is None else "error_in_b"
        return {(0, 1): "ok_to_anomaly", (1, 0): "anomaly_to_ok"}.get((a[key][0], b[key][0]), SAME)

    def made(side: dict[str, Any]) -> pa.Table:
        return table(*(failed(key) if value is None else scored(key, *value) for key, value in side.items()))

    difference = compare(made(a), made(b))
    expected = {key: change(key) for key in a | b}
    assert {row["key"]: row["change"] for row in difference.images.to_pylist()} == expected
    assert {name: count for name, count in difference.total.items() if count} == Counter(expected.values())
    both = {key: abs(b[key][1] - a[key][1]) for key in a if a[key] and b.get(key)}
    sizes = sorted((size for size in both.values() if size), reverse=True)
    assert [abs(row["score_change"]) for row in difference.moved(100).to_pylist()] == sizes


# -- from tables as they lie in storage


@pytest.fixture
def root() -> Iterator[Storage]:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    yield storage
    for path in storage.files():
        storage.remove(path)


def write(results: Storage, rows: Sequence[Row], shard: str = "s-1") -> str:
    for first in range(0, len(rows), 3):
        named = [row | {"image_id": f"{shard}/{row['key']}"} for row in rows[first : first + 3]]
        write_part(results, PartName(shard, first), named, {})
    return results.uri


def test_tables_are_read_joined_on_the_key_whatever_their_shards(root: Storage) -> None:
    a, b = write(root.child("a"), A, "monday-1"), write(root.child("b"), B, "tuesday-2")
    difference = diff(DiffConfig(a=a, b=b))
    assert {row["key"]: row["change"] for row in difference.changed.to_pylist()} == EXPECTED
    by_id = diff(DiffConfig(a=a, b=b, by="image_id"))
    assert by_id.total["only_in_a"] == by_id.total["only_in_b"] == 7


def test_image_ids_tell_apart_what_keys_do_not(root: Storage) -> None:
    for side, rows in (("a", A), ("b", B)):
        for shard in ("s-1", "s-2"):
            write(root.child(side), rows, shard)
    a, b = root.join("a"), root.join("b")
    assert len(diff(DiffConfig(a=a, b=b)).duplicates) == 8
    difference = diff(DiffConfig(a=a, b=b, by="image_id"))
    assert not difference.duplicates
    assert difference.total == {SAME: 4, **dict.fromkeys(CHANGES, 2)}


def test_all_differences_are_written(root: Storage) -> None:
    a, b = write(root.child("a"), A), write(root.child("b"), B)
    difference = diff(DiffConfig(a=a, b=b, limit=1, write=root.join("out/changes.parquet")))
    written = pq.read_table(pa.BufferReader(root.read("out/changes.parquet")))
    assert written.equals(difference.changed)
    assert written.num_rows == len(EXPECTED)


def test_a_job_that_has_begun_has_no_rows_yet(root: Storage) -> None:
    whole = write(root.child("whole"), [scored("a.png", False, 0.1)])
    root.child("begun").write("shard=s-1/.part-000000000.parquet.tmp", b"")
    difference = diff(DiffConfig(a=whole, b=root.child("begun").uri))
    assert difference.total["only_in_a"] == 1


def test_a_folder_without_a_table_is_named(root: Storage) -> None:
    a = write(root.child("a"), A)
    with pytest.raises(DataError, match="nothing holds no score table"):
        diff(DiffConfig(a=a, b=root.join("nothing")))


def test_json_holds_no_more_images_than_the_limit() -> None:
    many = table(scored("k", True, 0.1), scored("k", True, 0.1), scored("l", True, 0.1), scored("l", True, 0.1), *A)
    values = json.loads(json.dumps(compare(many, table(*B)).as_dict(limit=1)))
    assert len(values["changed"]) == len(values["moved"]) == len(values["duplicated"]) == 1
    assert values["duplicates"] == 2
    assert values["same"] == 2
    assert values["categories"]["pill"]["error_in_b"] == 1


def test_the_report_says_what_it_leaves_out() -> None:
    difference = compare(table(*A, scored("k", True, 0.1), scored("k", True, 0.1)), table(*B))
    counts, changed, moved, duplicates = difference_report(difference, limit=2)
    assert [len(part.rows) for part in (counts, changed, moved)] == [3, 2, 2]
    assert "2 of 6" in str(changed.caption)
    assert duplicates == "Not compared, as more than one row has the name: 1 ('k')"
