"""Compaction: one row a record and the same ledger at every moment, wherever it stops and whoever is at work meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from random import Random
from typing import IO, Any

import duckdb
import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.errors import DataError
from cflow_ray.store.compaction import compact
from cflow_ray.store.results import (
    SCORE_SCHEMA,
    PartName,
    finished_parts,
    read_maps,
    read_results,
    read_tables,
    write_part,
)
from cflow_ray.store.storage import Storage
from tests.stores import Place

CHUNK = 4
SMALLER, LARGER, ALL = 40_000, 60_000, 10**9
"""Sizes of a part: some 3 chunks, some 5, and all there are; a chunk's own part has some 18 kB."""


class KilledError(Exception):
    """Raised in a place where a process could be killed."""


class Watched(Storage):
    """Calls `before` with the number of every call that compaction makes."""

    def __init__(self, storage: Storage, before: Callable[[int], None]) -> None:
        super().__init__(storage.uri, storage.options)
        self._before, self._calls = before, 0
        self._one_by_one = threading.Lock()  # readers read ahead in threads

    def walk(self, start: str = "") -> Iterator[tuple[str, int]]:
        self._call_number()
        return super().walk(start)

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self._call_number()
        return super().read(path, start, end)

    def read_if_there(self, path: str) -> bytes | None:
        self._call_number()
        return super().read_if_there(path)

    def open(self, path: str) -> IO[bytes]:
        self._call_number()
        return super().open(path)

    def write(self, path: str, content: bytes) -> None:
        self._call_number()
        super().write(path, content)

    def remove(self, path: str) -> None:
        self._call_number()
        super().remove(path)

    def _call_number(self) -> None:
        with self._one_by_one:
            self._before(self._calls)
            self._calls += 1


def killed_at(number: int) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == number:
            raise KilledError

    return before


@contextmanager
def in_memory() -> Iterator[Storage]:
    storage = Storage(f"memory://{uuid.uuid4().hex}/scores")
    yield storage
    for path in storage.files():
        storage.remove(path)


@cache
def row(shard: str, record: int) -> dict[str, Any]:
    """A record of some 3 kB that do not compress."""
    key = f"screw/{record:06d}.png"
    random = Random(f"{shard}{record}")
    regions = [{"box": [random.getrandbits(31)] * 4, "area": random.random(), "peak": 0.5} for _ in range(200)]
    return {"image_id": f"{shard}/{key}", "key": key, "category": "screw", "regions": regions}


def write_chunk(storage: Storage, number: int, shard: str = "a-1", count: int = CHUNK) -> None:
    first = number * CHUNK
    write_part(storage, PartName(shard, first), [row(shard, first + record) for record in range(count)], {})


def check(storage: Storage, written: set[tuple[str, int]], chunks: int = 16) -> None:
    """Exactly the rows of the written chunks are there, in order, and exactly they are done."""
    ledger = finished_parts(storage)
    done = {(shard, n) for shard in ("a-1", "b-2") for n in range(chunks) if PartName(shard, n * CHUNK) in ledger}
    assert done == written
    records = [f"{shard}/screw/{n * CHUNK + r:06d}.png" for shard, n in sorted(written) for r in range(CHUNK)]
    if written:
        assert read_results(storage)["image_id"].to_pylist() == records


def paths(storage: Storage) -> list[str]:
    return [path for path in storage.files() if path.endswith(".parquet")]


# -- what it makes


def test_small_parts_become_one_with_the_same_rows_in_order(storage: Storage) -> None:
    for shard in ("b-2", "a-1"):
        for number in reversed(range(5)):
            write_chunk(storage, number, shard)
        write_chunk(storage, 5, shard, count=1)
    before = read_results(storage)
    summary = compact(storage, ALL)
    assert paths(storage) == [f"shard={shard}/part-000000000-000000021.parquet" for shard in ("a-1", "b-2")]
    assert read_results(storage).equals(before, check_metadata=True)
    assert (summary.shards, summary.parts_written, summary.parts_removed, summary.rows) == (2, 2, 12, 42)
    assert summary.bytes_written == sum(storage.sizes().values())


def test_a_second_compaction_of_the_same_size_finds_nothing_to_do(storage: Storage) -> None:
    for number in range(16):
        write_chunk(storage, number)
    for size in (SMALLER, LARGER, ALL):
        assert compact(storage, size).parts_written >= 1
        before = storage.sizes()
        again = compact(storage, size)
        assert (again.parts_written, again.parts_removed) == (0, 0)
        assert storage.sizes() == before
    assert len(before) == 1


def test_parts_have_the_size_that_is_asked_for(local: Storage) -> None:
    for number in range(24):
        write_chunk(local, number)
    compact(local, LARGER)
    *full, last = local.sizes().values()
    assert len(full) >= 2
    assert all(LARGER <= size < 1.5 * LARGER for size in full)
    assert last < 1.5 * LARGER


def test_large_parts_are_left_alone(storage: Storage) -> None:
    for number in range(3):
        write_chunk(storage, number)
    before = storage.sizes()
    assert compact(storage, 1).parts_written == 0
    assert storage.sizes() == before


def test_chunks_that_are_not_done_stay_gaps(storage: Storage) -> None:
    numbers = {0, 1, 3, 5, 6, 7}
    for number in numbers:
        write_chunk(storage, number)
    compact(storage, ALL)
    check(storage, {("a-1", number) for number in numbers})
    assert [path.partition("/")[2] for path in paths(storage)] == [
        "part-000000000-000000008.parquet",
        "part-000000012.parquet",
        "part-000000020-000000032.parquet",
    ]
    for number in (2, 4):
        write_chunk(storage, number)
    compact(storage, ALL)
    assert paths(storage) == ["shard=a-1/part-000000000-000000032.parquet"]


def test_a_chunk_without_rows_stays_done(storage: Storage) -> None:
    for number, count in enumerate((CHUNK, CHUNK, 0)):
        write_chunk(storage, number, count=count)
    compact(storage, ALL)
    ledger = finished_parts(storage)
    assert all(PartName("a-1", number * CHUNK) in ledger for number in range(3))
    assert PartName("a-1", 3 * CHUNK) not in ledger


def test_row_groups_have_the_rows_of_many_parts(local: Storage) -> None:
    rows = [row("a-1", record) | {"regions": None} for record in range(1000)]
    for number in range(140):
        write_part(local, PartName("a-1", 1000 * number), rows, {})
    compact(local, ALL)
    (path,) = paths(local)
    metadata = pq.read_metadata(local.join(path))
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [132_000, 8_000]


def test_maps_and_all_other_files_stay(storage: Storage) -> None:
    for number in range(2):
        name = PartName("a-1", number * CHUNK)
        rows = [row("a-1", name.first + record) | {"map": name.maps_path} for record in range(CHUNK)]
        write_part(storage, name, rows, {row["key"]: b"png" for row in rows})
    for path in ("_plan.json", "_SUCCESS", "_index/a-1.json", "shard=a-1/notes.txt", "shard=a-1/part-5.parquet"):
        storage.write(path, b"kept")
    before = set(storage.files())
    compact(storage, ALL)
    removed = {PartName("a-1", first).path for first in (0, CHUNK)}
    assert set(storage.files()) == before - removed | {PartName("a-1", 0, 2 * CHUNK).path}
    for found in read_results(storage).to_pylist():
        assert found["key"] in read_maps(storage, found["map"])


@pytest.mark.s3
def test_a_table_on_s3_is_compacted_twice(moto: Place) -> None:
    storage = Storage(f"{moto.root}/{uuid.uuid4().hex}", moto.options)
    for number in range(12):
        write_chunk(storage, number)
    before = read_results(storage)
    for size, count in ((LARGER, 3), (ALL, 1)):
        compact(storage, size)
        assert len(paths(storage)) == count
        assert read_results(storage).equals(before)
    check(storage, {("a-1", number) for number in range(12)})


# -- what it refuses


def test_a_folder_without_a_table_is_told(storage: Storage) -> None:
    with pytest.raises(DataError, match="holds no score table"):
        compact(storage, ALL)


def test_a_damaged_part_is_named_and_nothing_is_lost(storage: Storage) -> None:
    for number in range(3):
        write_chunk(storage, number)
    damaged = PartName("a-1", CHUNK)
    storage.write(damaged.path, storage.read(damaged.path)[:-100])
    before = storage.sizes()
    with pytest.raises(DataError, match=r"part-000000004\.parquet.*Delete it"):
        compact(storage, ALL)
    assert storage.sizes() == before


def test_small_parts_are_kept_where_the_large_one_is_damaged(storage: Storage) -> None:
    for number in range(3):
        write_chunk(storage, number)
    storage.write(PartName("a-1", 0, 2 * CHUNK).path, storage.read(PartName("a-1", 0).path))  # too few rows
    before = storage.sizes()
    for call in (lambda: compact(storage, ALL), lambda: read_results(storage)):
        with pytest.raises(DataError, match=r"part-000000000-000000008\.parquet.* 4 rows"):
            call()
    assert storage.sizes() == before
    storage.remove(PartName("a-1", 0, 2 * CHUNK).path)
    check(storage, {("a-1", number) for number in range(3)})


def test_columns_of_a_later_release_are_not_dropped(storage: Storage) -> None:
    for number in range(2):
        write_chunk(storage, number)
    later = read_results(storage).slice(0, CHUNK)
    buffer = pa.BufferOutputStream()
    pq.write_table(later.append_column("mood", pa.array(["fine"] * CHUNK)), buffer)
    storage.write(PartName("a-1", CHUNK).path, buffer.getvalue().to_pybytes())
    before = storage.sizes()
    with pytest.raises(DataError, match="mood"):
        compact(storage, ALL)
    assert storage.sizes() == before


def test_a_part_that_reaches_into_the_next_is_named(storage: Storage) -> None:
    write_chunk(storage, 0, count=CHUNK + 1)
    write_chunk(storage, 1)
    before = storage.sizes()
    with pytest.raises(DataError, match="has 5 rows and reaches into"):
        compact(storage, ALL)
    assert storage.sizes() == before


# -- stopped, and several at once


STEPS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(["a-1", "b-2"]), st.integers(0, 15)),
    st.tuples(st.just("compact"), st.sampled_from([SMALLER, LARGER, ALL]), st.none() | st.integers(0, 40)),
)


@settings(max_examples=60, deadline=None)
@given(
    written=st.sets(st.tuples(st.sampled_from(["a-1", "b-2"]), st.integers(0, 15))),
    steps=st.lists(STEPS, min_size=1, max_size=8),
)
def test_every_record_is_there_once_wherever_compaction_is_killed(
    written: set[tuple[str, int]], steps: list[tuple[Any, ...]]
) -> None:
    with in_memory() as storage:
        for shard, number in written:
            write_chunk(storage, number, shard)
        for kind, *arguments in steps:
            if kind == "write":
                shard, number = arguments
                write_chunk(storage, number, shard)  # again, even, as a task that was retried does
                written = written | {(shard, number)}
            elif written:
                size, call = arguments
                with suppress(KilledError):
                    compact(Watched(storage, killed_at(-1 if call is None else call)), size)
            check(storage, written)
        if written:
            compact(storage, ALL)
            check(storage, written)
            ledger = finished_parts(storage)
            read = {part.path for shard in ledger.shards for part in ledger.parts(shard)}
            assert set(paths(storage)) == read  # nothing that a foreign reader would see twice
            assert len(read) == sum((shard, number - 1) not in written for shard, number in written)


@pytest.mark.parametrize(("one", "other"), [(SMALLER, LARGER), (LARGER, SMALLER), (SMALLER, ALL), (ALL, ALL)])
def test_two_at_once_lose_and_repeat_nothing(one: int, other: int) -> None:
    expected = {("a-1", number) for number in range(10)}
    call, reached = 0, True
    while reached:
        reached = False
        with in_memory() as storage:
            for number in range(10):
                write_chunk(storage, number)

            def meanwhile(made: int, call: int = call, storage: Storage = storage) -> None:
                nonlocal reached
                if made == call:
                    reached = True
                    compact(storage, other)
                if made >= call:
                    check(storage, expected)

            compact(Watched(storage, meanwhile), one)
            check(storage, expected)
            compact(storage, ALL)
            assert paths(storage) == ["shard=a-1/part-000000000-000000040.parquet"]
            check(storage, expected)
        call += 1
    assert call > 20


def test_parts_that_overlap_are_read_once_and_merged(storage: Storage) -> None:
    for number in range(12):
        write_chunk(storage, number)
    content = read_results(storage)
    for first, end in ((0, 16), (8, 32), (8, 12), (28, 48)):
        buffer = pa.BufferOutputStream()
        pq.write_table(content.slice(first, end - first), buffer)
        storage.write(PartName("a-1", first, end).path, buffer.getvalue().to_pybytes())
    assert read_results(storage).equals(content)
    compact(storage, 1)  # however large they are
    assert paths(storage) == ["shard=a-1/part-000000000-000000048.parquet"]
    assert read_results(storage).equals(content)


def test_a_reader_is_not_disturbed_by_compaction() -> None:
    call, reached = 0, True
    while reached:
        reached = False
        with in_memory() as storage:
            for shard in ("a-1", "b-2"):
                for number in range(5):
                    write_chunk(storage, number, shard)
            expected = read_results(storage)

            def meanwhile(made: int, call: int = call, storage: Storage = storage) -> None:
                nonlocal reached
                if made == call:
                    reached = True
                    compact(storage, LARGER)
                if made == call + 2:
                    compact(storage, ALL)

            tables = list(read_tables(Watched(storage, meanwhile)))
            assert pa.concat_tables(tables).equals(expected)
        call += 1
    assert call > 10


@pytest.mark.parametrize("listing", [0, 1, 2])
def test_a_reader_finds_what_was_compacted_between_the_pages_of_a_listing(listing: int) -> None:
    class Paged(Storage):
        """Lists in order of names, the first of which is on a page of its own; `compact` runs before the second page."""

        listings = 0

        def walk(self, start: str = "") -> Iterator[tuple[str, int]]:
            first, *others = sorted(super().walk(start))
            yield first
            if self.listings == listing:
                compact(Storage(self.uri), ALL)
            self.listings += 1
            left = set(super().walk(start))
            yield from (entry for entry in others if entry in left)

    with in_memory() as storage:
        for shard in ("a-1", "b-2"):
            for number in range(5):
                write_chunk(storage, number, shard)
        expected = read_results(storage)
        assert read_results(Paged(storage.uri)).equals(expected)


def test_a_job_goes_on_while_its_table_is_compacted() -> None:
    call, reached = 0, True
    while reached:
        reached = False
        with in_memory() as storage:
            for number in (0, 1, 2, 4, 5, 6):
                write_chunk(storage, number)

            def meanwhile(made: int, call: int = call, storage: Storage = storage) -> None:
                nonlocal reached
                if made == call:
                    reached = True
                    for number in (3, 7, 1):  # two chunks more, and one that another worker had tried before
                        write_chunk(storage, number)

            compact(Watched(storage, meanwhile), ALL)
            check(storage, {("a-1", number) for number in range(8 if reached else 7) if reached or number != 3})
            compact(storage, ALL)
            assert len(paths(storage)) == (1 if reached else 2)
        call += 1
    assert call > 10


# -- one table to everybody


@pytest.fixture(params=["chunks", "compacted", "both"])
def table(request: pytest.FixtureRequest, local: Storage) -> Storage:
    """A table of 13 rows in two shards with all that lies beside one; local, for engines that open files themselves."""
    scored = {"score": 0.75, "is_anomaly": True, "frame": [0, 1, 2, 3], "checkpoint": "v1"}
    scored |= {"regions": [{"box": [0, 1, 2, 3], "area": 1.5, "peak": 0.5}]}
    for shard in ("a-1", "b-2"):
        for number in range(2 if request.param == "both" else 3):
            name = PartName(shard, 2 * number)
            rows = [row(shard, name.first), row(shard, name.first + 1) | scored]
            write_part(local, name, rows, {"k": b"png"})
    write_part(local, PartName("a-1", 6), [row("a-1", 6)], {})
    for path in ("_plan.json", "_SUCCESS", "_index/a-1.json"):
        local.write(path, b"{}")
    if request.param != "chunks":
        compact(local, ALL)
    if request.param == "both":
        for shard in ("a-1", "b-2"):
            write_part(local, PartName(shard, 4), [row(shard, 4), row(shard, 5) | scored], {})
    return local


def test_pyarrow_pandas_and_duckdb_read_one_table(table: Storage) -> None:
    expected = read_results(table).sort_by("image_id")
    assert expected.num_rows == 13

    dataset = pyarrow.dataset.dataset(table.root, partitioning="hive")
    found = dataset.to_table().sort_by("image_id")
    assert set(found.column_names) == {*SCORE_SCHEMA.names, "shard"}
    assert found.select(SCORE_SCHEMA.names).equals(expected)

    frame = pandas.read_parquet(table.root).sort_values("image_id")
    assert frame["key"].tolist() == expected["key"].to_pylist()
    assert frame["shard"].astype(str).tolist() == [name.partition("/")[0] for name in expected["image_id"].to_pylist()]

    query = f"SELECT * FROM read_parquet('{table.root}/**/*.parquet', hive_partitioning=true) ORDER BY image_id"
    rows = duckdb.sql(query).to_arrow_table().to_pylist()
    assert [{name: row[name] for name in SCORE_SCHEMA.names} for row in rows] == expected.to_pylist()
    assert {row["shard"] for row in rows} == {"a-1", "b-2"}


def test_pyarrow_reads_a_compacted_table_of_another_store() -> None:
    with in_memory() as storage:
        for number in range(3):
            write_chunk(storage, number)
        expected = read_results(storage)
        compact(storage, ALL)
        dataset = pyarrow.dataset.dataset(storage.root, filesystem=storage.arrow_file_system, partitioning="hive")
        assert dataset.to_table().select(SCORE_SCHEMA.names).equals(expected)
