"""Parquet files with image bytes: rows are records, and only the row groups in question are read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Record, Shard, ShardIndex, read_index, read_records
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

IMAGES = [bytes([number]) * (100 + number) for number in range(100)]
KEYS = [f"screw/{number:03}.png" for number in range(100)]


def put(storage: Storage, table: pa.Table, rows: int = 32) -> Shard:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows, compression="none", use_dictionary=False)
    storage.write("x.parquet", buffer.getvalue())
    return Shard(storage.join("x.parquet"), "parquet")


def records_of(shard: Shard, how: ReadConfig | None = None) -> list[Record]:
    how = how or ReadConfig()
    return list(read_records(shard, read_index(shard, {}, how).members, {}, how))


@pytest.mark.parametrize("rows", [1, 7, 32, 100])
def test_any_run_of_rows_is_read_alone(storage: Storage, rows: int) -> None:
    shard = put(storage, pa.table({"image": IMAGES, "key": KEYS}), rows)
    members = read_index(shard, {}, ReadConfig()).members
    for first, end in ((0, 100), (0, 1), (99, 100), (31, 33), (40, 77), (64, 96)):
        found = list(read_records(shard, members[first:end], {}, ReadConfig()))
        assert [(record.key, record.content) for record in found] == list(zip(KEYS, IMAGES, strict=True))[first:end]


def test_a_run_of_rows_fetches_its_row_groups_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, count_reads: Callable[[], list[int]]
) -> None:
    if storage.is_local:
        pytest.skip("local files are not fetched in ranges")
    monkeypatch.setattr("cflow_ray.store.storage._READ_AHEAD", 2**12)
    table = pa.table({"image": [bytes(10_000)] * 100, "key": KEYS})
    shard = put(storage, table, rows=10)
    members = read_index(shard, {}, ReadConfig()).members
    fetched = count_reads()
    assert len(list(read_records(shard, members[40:50], {}, ReadConfig()))) == 10
    assert sum(fetched) < 200_000 < storage.size("x.parquet")


def test_the_index_reads_keys_and_no_images(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, count_reads: Callable[[], list[int]]
) -> None:
    if storage.is_local:
        pytest.skip("local files are not fetched in ranges")
    monkeypatch.setattr("cflow_ray.store.storage._READ_AHEAD", 2**12)
    shard = put(storage, pa.table({"image": [bytes(10_000)] * 100, "key": KEYS}))
    fetched = count_reads()
    assert len(read_index(shard, {}, ReadConfig())) == 100
    assert sum(fetched) < 100_000


def test_rows_without_a_key_column_are_numbered(storage: Storage) -> None:
    records = records_of(put(storage, pa.table({"jpg": IMAGES})))
    assert [record.key for record in records[:2]] == ["000000000", "000000001"]


def test_a_row_without_a_key_is_numbered(storage: Storage) -> None:
    records = records_of(put(storage, pa.table({"jpg": IMAGES[:4], "key": ["a", None, "c", None]})))
    assert [(record.key, record.content) for record in records] == list(
        zip(["a", "000000001", "c", "000000003"], IMAGES[:4], strict=True)
    )
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": image, "path": None} for image in IMAGES[:2]], kind)
    assert [record.key for record in records_of(put(storage, pa.table({"image": images})))] == [
        "000000000",
        "000000001",
    ]


@pytest.mark.parametrize(
    ("text", "binary"),
    [(pa.string(), pa.binary()), (pa.large_string(), pa.large_binary()), (pa.string_view(), pa.binary_view())],
)
def test_keys_and_images_are_of_any_type_of_text_and_bytes(
    storage: Storage, text: pa.DataType, binary: pa.DataType
) -> None:
    records = records_of(put(storage, pa.table({"image": pa.array(IMAGES, binary), "key": pa.array(KEYS, text)})))
    assert [(record.key, record.content) for record in records] == list(zip(KEYS, IMAGES, strict=True))


def test_hugging_face_images_are_a_structure_of_bytes_and_path(storage: Storage) -> None:
    images = [{"bytes": image, "path": key} for image, key in zip(IMAGES, KEYS, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": ["x"] * 100})
    records = records_of(put(storage, table), ReadConfig(category_field="label"))
    assert [(record.key, record.content) for record in records] == list(zip(KEYS, IMAGES, strict=True))
    assert records[0].fields == {"label": "x"}


def test_columns_can_be_named(storage: Storage) -> None:
    table = pa.table({"raw": IMAGES, "mask": IMAGES[::-1], "name": KEYS})
    shard = put(storage, table)
    with pytest.raises(DataError, match=r"2 columns of bytes \(raw, mask\); say which is the image's"):
        read_index(shard, {}, ReadConfig())
    records = records_of(shard, ReadConfig(image_column="raw", key_column="name"))
    assert [(record.key, record.content) for record in records] == list(zip(KEYS, IMAGES, strict=True))
    with pytest.raises(DataError, match="no column 'jpg' of bytes; it has raw, mask"):
        read_index(shard, {}, ReadConfig(image_column="jpg"))
    with pytest.raises(DataError, match="no key column 'id'; there are raw, mask, name"):
        read_index(shard, {}, ReadConfig(image_column="raw", key_column="id"))


def test_rows_that_cannot_be_used_are_errors(storage: Storage) -> None:
    table = pa.table({"image": [b"1", None, bytes(101), b"4", b"5"], "key": ["a", "b", "c", "a", "../e"]})
    records = records_of(put(storage, table), ReadConfig(max_image_size=100))
    kinds = [getattr(record.content, "kind", None) for record in records]
    assert kinds == [None, "no_image", "too_large", "duplicate_key", "unsafe_name"]


def test_a_file_that_was_replaced_by_a_shorter_one_gives_errors_for_the_rest(storage: Storage) -> None:
    shard = put(storage, pa.table({"image": IMAGES, "key": KEYS}))
    members = read_index(shard, {}, ReadConfig()).members
    put(storage, pa.table({"image": IMAGES[:40], "key": KEYS[:40]}))
    found = list(read_records(shard, members[30:60], {}, ReadConfig()))
    assert [record.key for record in found] == KEYS[30:60]
    assert [isinstance(record.content, bytes) for record in found] == [True] * 10 + [False] * 20


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(200) + b"PAR1"])
def test_what_is_no_parquet_is_damage(storage: Storage, content: bytes) -> None:
    storage.write("x.parquet", content)
    index: Any = read_index(Shard(storage.join("x.parquet"), "parquet"), {}, ReadConfig())
    assert index == ShardIndex((), index.damage)
    assert index.damage.startswith("damaged parquet: ")


def test_damage_in_a_row_group_costs_its_rows(storage: Storage) -> None:
    shard = put(storage, pa.table({"image": IMAGES, "key": KEYS}), rows=50)
    members = read_index(shard, {}, ReadConfig()).members
    content = bytearray(storage.read("x.parquet"))
    place = content.index(IMAGES[0]) - 60
    content[place : place + 60] = b"\xff" * 60
    storage.write("x.parquet", bytes(content))
    records = list(read_records(shard, members, {}, ReadConfig()))
    assert [record.key for record in records] == KEYS
    assert not isinstance(records[0].content, bytes)
