"""The score table: parts that are their own ledger, a schema that survives, maps beside the rows."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.data.images import decode_map, encode_map
from cflow_ray.errors import DataError
from cflow_ray.store.results import (
    SCORE_SCHEMA,
    Ledger,
    PartName,
    finished_parts,
    read_columns,
    read_maps,
    read_results,
    read_tables,
    write_part,
)
from cflow_ray.store.storage import Storage

SCORED: dict[str, Any] = {
    "image_id": "shard-1/screw/test/good/000.png",
    "key": "screw/test/good/000.png",
    "category": "screw",
    "checkpoint": "v1-abcdef",
    "score": 0.1 + 0.2,  # no float32
    "p_value": 1 / 3,
    "is_anomaly": True,
    "threshold": 0.25,
    "width": 640,
    "height": 480,
    "frame": [0, 60, 640, 360],
    "regions": [{"box": [1, 2, 30, 40], "area": 12.5, "peak": 0.5}, {"box": [0, 0, 1, 1], "area": 1.0, "peak": 0.25}],
    "map": "_maps/shard=shard-1/part-000000000.tar",
    "error": None,
    "error_kind": None,
}


def failed(key: str) -> dict[str, Any]:
    return {"image_id": f"shard-1/{key}", "key": key, "error": "empty file"}


def parts(ledger: Ledger) -> list[PartName]:
    return [part for shard in ledger.shards for part in ledger.parts(shard)]


@settings(max_examples=30, deadline=None)
@given(
    shard=st.from_regex(r"[\w.-]+-[0-9a-f]{8}", fullmatch=True),
    first=st.integers(0, 10**12),
    count=st.none() | st.integers(1, 10**12),
)
def test_a_part_is_found_again_by_its_path(shard: str, first: int, count: int | None) -> None:
    storage = Storage("memory://results-names")
    name = PartName(shard, first, None if count is None else first + count)
    storage.write(name.path, b"")
    try:
        assert parts(finished_parts(storage)) == [name]
        assert PartName.of(name.path) == name
    finally:
        storage.remove(name.path)


SPANS = st.tuples(st.integers(0, 20), st.integers(1, 8)).map(lambda span: (4 * span[0], 4 * (span[0] + span[1])))


@settings(max_examples=200, deadline=None)
@given(chunks=st.sets(st.integers(0, 30)), spans=st.sets(SPANS), start=st.integers(0, 60), order=st.randoms())
def test_a_ledger_knows_every_chunk_and_names_the_parts_that_hold_its_rows(
    chunks: set[int], spans: set[tuple[int, int]], start: int, order: Any
) -> None:
    names = [PartName("a-1", 4 * chunk) for chunk in chunks] + [PartName("a-1", *span) for span in spans]
    paths = [name.path for name in names]
    order.shuffle(paths)
    ledger = Ledger(paths)
    covered = {record for first, end in spans for record in range(first, end)}
    done = covered | {4 * chunk + record for chunk in chunks for record in range(4)}
    assert [PartName("a-1", record) in ledger for record in range(0, 130, 4)] == [n in done for n in range(0, 130, 4)]

    found = list(ledger.parts("a-1"))
    assert found == sorted(found, key=lambda name: name.first)
    read = [record for name in found for record in range(name.first, name.end or name.first + 4)]
    assert set(read) == done
    assert all(name.end is not None or name.first not in covered for name in found)
    later = [name for name in found if (name.first + 1 if name.end is None else name.end) > start]
    assert list(ledger.parts("a-1", start)) == later


def test_a_part_of_a_chunk_takes_eight_bytes() -> None:
    count = 100_000
    tracemalloc.start()
    ledger = Ledger(PartName("line-7", 64 * number).path for number in range(count))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 8 * count + 50_000
    assert peak < 60 * count
    assert PartName("line-7", 64 * (count - 1)) in ledger
    assert PartName("line-7", 64 * count) not in ledger


def test_rows_come_back_as_they_were_with_the_schema(storage: Storage) -> None:
    write_part(storage, PartName("shard-1", 0), [SCORED, failed("b.png")], {})
    table = read_results(storage)
    assert table.schema.equals(SCORE_SCHEMA, check_metadata=True)
    first, second = table.to_pylist()
    assert first == dict.fromkeys(SCORE_SCHEMA.names) | SCORED
    assert second == dict.fromkeys(SCORE_SCHEMA.names) | failed("b.png")


def test_rows_are_in_order_of_shard_and_record_however_the_parts_were_written(storage: Storage) -> None:
    names = [PartName(shard, first) for shard in ("a-1", "b-2") for first in (0, 64, 128, 1_000_000_000, 2_000_000_000)]
    for name in reversed(names):
        write_part(storage, name, [failed(f"{name.shard}/{name.first}/{record}") for record in range(3)], {})
    expected = [f"{name.shard}/{name.first}/{record}" for name in names for record in range(3)]
    assert read_results(storage)["key"].to_pylist() == expected


def test_columns_can_be_read_by_themselves(storage: Storage) -> None:
    for first in (0, 2):
        write_part(storage, PartName("a-1", first), [SCORED, failed("b.png")], {})
    tables = list(read_tables(storage, ("error", "regions")))
    assert [table.num_rows for table in tables] == [2, 2]
    assert tables[0].to_pylist() == [
        {"error": None, "regions": SCORED["regions"]},
        {"error": "empty file", "regions": None},
    ]


def test_writing_a_part_again_replaces_it(storage: Storage) -> None:
    name = PartName("a-1", 0)
    write_part(storage, name, [failed("once"), failed("twice")], {})
    write_part(storage, name, [failed("again")], {})
    assert read_results(storage)["key"].to_pylist() == ["again"]


def test_the_same_rows_give_the_same_bytes(storage: Storage) -> None:
    contents = []
    for _ in range(2):
        write_part(storage, PartName("a-1", 0), [SCORED], {"k": b"png"})
        contents.append([storage.read(path) for path in storage.files()])
    assert contents[0] == contents[1]


def test_a_chunk_without_rows_is_finished_too(storage: Storage) -> None:
    write_part(storage, PartName("a-1", 0), [], {})
    assert parts(finished_parts(storage)) == [PartName("a-1", 0)]
    assert read_results(storage).num_rows == 0


def test_other_files_are_no_parts(storage: Storage) -> None:
    write_part(storage, PartName("a-1", 64), [failed("k")], {"k": b"map"})
    others = (
        "_plan.json",
        "_SUCCESS",
        "_index/a-1.json",
        "part-000000000.parquet",
        "shard=a-1/part-000000000.parquet.tmp",
        "shard=a-1/part-000000000.csv",
        "shard=a-1/deeper/part-000000000.parquet",
        "shard=a-1/part-5.parquet",
        "shard=a-1/part-0000000005.parquet",
        "shard=a-1/part-000000000-5.parquet",
        "shard=a-1/part-000000000-000000064-000000128.parquet",
        "copy/shard=a-1/part-000000000.parquet",
        "scores.parquet",
    )
    for path in others:
        storage.write(path, b"something else")
    assert parts(finished_parts(storage)) == [PartName("a-1", 64)]
    assert read_results(storage)["key"].to_pylist() == ["k"]


def test_no_part_is_a_data_error_that_says_what_to_run(storage: Storage) -> None:
    storage.write("_plan.json", b"{}")
    assert parts(finished_parts(storage)) == []
    with pytest.raises(DataError, match="cflow-ray score"):
        read_results(storage)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_score(content: bytes) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(content)).drop_columns(["score"]), buffer)
    return buffer.getvalue()


def with_text_as_score(content: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    buffer = io.BytesIO()
    at = SCORE_SCHEMA.get_field_index("score")
    pq.write_table(table.set_column(at, "score", [["high"]]), buffer)
    return buffer.getvalue()


def test_some_columns_of_a_part_can_be_read_alone(storage: Storage) -> None:
    name = PartName("shard-1", 0)
    write_part(storage, name, [SCORED, failed("b.png")], {})
    table = read_columns(storage, name, ("error", "score"))
    assert table.column_names == ["error", "score"]
    assert table.to_pylist() == [{"error": None, "score": 0.1 + 0.2}, {"error": "empty file", "score": None}]
    storage.write(name.path, without_score(storage.read(name.path)))
    with pytest.raises(DataError, match=r"part-000000000\.parquet"):
        read_columns(storage, name, ("error", "score"))
    assert read_columns(storage, name, ("key",))["key"].to_pylist() == [SCORED["key"], "b.png"]


@pytest.mark.parametrize("damage", [truncated, without_score, with_text_as_score, lambda _: b""])
def test_a_damaged_part_is_named(storage: Storage, damage: Any) -> None:
    good, bad = PartName("a-1", 0), PartName("a-1", 1)
    write_part(storage, good, [failed("a")], {})
    write_part(storage, bad, [failed("b")], {})
    storage.write(bad.path, damage(storage.read(bad.path)))
    with pytest.raises(DataError, match=r"part-000000001\.parquet"):
        read_results(storage)


def test_maps_lie_beside_the_rows_under_their_keys(storage: Storage) -> None:
    maps = np.random.default_rng(0).random((5, 16, 24), dtype=np.float32)
    keys = ["a.png", "screw/test/good/000.png", "schräg/ü 1.png", "deep/" * 40 + "x.jpg", "no-extension"]
    written = {key: encode_map(map_HW) for key, map_HW in zip(keys, maps, strict=True)}
    name = PartName("shard-1", 128)
    write_part(storage, name, [failed(key) for key in keys], written)
    read = read_maps(storage, name.maps_path)
    assert read == written
    for key, map_HW in zip(keys, maps, strict=True):
        assert np.abs(decode_map(read[key]) - map_HW).max() <= 1 / 131070


def test_a_chunk_without_maps_has_no_side_car(storage: Storage) -> None:
    write_part(storage, PartName("a-1", 0), [failed("k")], {})
    assert storage.files() == ["shard=a-1/part-000000000.parquet"]


def test_maps_are_there_before_the_part_that_says_so(local: Storage) -> None:
    local.write("shard=a-1", b"a file where the part's folder should be")
    with pytest.raises(Exception, match="shard=a-1"):
        write_part(local, PartName("a-1", 0), [failed("k")], {"k": b"png"})
    assert read_maps(local, PartName("a-1", 0).maps_path) == {"k": b"png"}
    assert parts(finished_parts(local)) == []
