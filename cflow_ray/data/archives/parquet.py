"""Parquet files with a column of image bytes: a row is a record, row groups are what is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.index import Member, ShardIndex
from cflow_ray.data.archives.records import Record, problem_of_name, too_large
from cflow_ray.errors import CflowRayError, DataError, RecordError, StorageError
from cflow_ray.store.storage import Storage

_KEY_COLUMNS = ("key", "path", "image_id", "filename", "file_name")
_TEXTS, _BYTES = ("string", "large_string", "string_view"), ("binary", "large_binary", "binary_view")
"""Types of columns by their names: pyarrow 15 has no test for the views, which Polars writes."""
_ROWS_OF_A_BATCH = 16


def read_parquet_index(storage: Storage, name: str, how: ReadConfig) -> ShardIndex:
    """The records of a Parquet file, for which its column of keys alone is read; a row without one is numbered."""
    try:
        with _opened(storage, name) as file:
            image = image_column(file.schema_arrow, storage.join(name), how)
            key = _key_column(file.schema_arrow, image, how)
            values = [None] * file.metadata.num_rows if key is None else _column(file, key)
            keys = [f"{row:09d}" if value is None else str(value) for row, value in enumerate(values)]
    except (pa.ArrowException, OSError) as error:
        return ShardIndex((), f"damaged parquet: {' '.join(str(error).split())}")
    return ShardIndex.of([Member(key, row, problem=problem_of_name(key)) for row, key in enumerate(keys)])


def read_parquet_records(storage: Storage, name: str, members: Sequence[Member], how: ReadConfig) -> Iterator[Record]:
    """Successive records of a Parquet file; the row groups they lie in are read a few rows at a time."""
    done, reason = 0, "it has fewer rows than when the job was planned"
    try:
        with _opened(storage, name) as file:
            image = image_column(file.schema_arrow, storage.join(name), how)
            columns = [image, *(name for name in file.schema_arrow.names if name == how.category_field)]
            for row in _rows(file, members[0].offset, members[-1].offset + 1, columns):
                member = members[done]
                fields = {column: value for column, value in row.items() if column != image}
                yield Record(member.key, member.error or _bytes_of(row[image], how), fields)
                done += 1
    except (pa.ArrowException, OSError, StorageError) as error:
        reason = " ".join(str(error).split())
    for member in members[done:]:
        yield Record(member.key, member.error or StorageError(f"{storage.join(name)} cannot be read here: {reason}"))


def image_column(schema: pa.Schema, uri: str, how: ReadConfig) -> str:
    """The column of image bytes: the one that is named, or the only one; raises DataError where that does not say."""
    found = byte_columns(schema)
    if how.image_column is not None:
        if how.image_column not in found:
            raise DataError(f"{uri} has no column {how.image_column!r} of bytes; it has {', '.join(found) or 'none'}.")
        return how.image_column
    if len(found) != 1:
        raise DataError(
            f"{uri} has {len(found)} columns of bytes ({', '.join(found) or 'none'}); say which is the image's with "
            "--image-column."
        )
    return str(found[0])


def byte_columns(schema: pa.Schema) -> list[str]:
    """The columns that may hold images."""
    return [column.name for column in schema if _holds_bytes(column.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    """Bytes, or a structure with `bytes` in it as Hugging Face's data sets have."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return str(kind) in _BYTES


def _key_column(schema: pa.Schema, image: str, how: ReadConfig) -> str | None:
    if how.key_column is not None:
        if how.key_column not in schema.names:
            raise DataError(f"no key column {how.key_column!r}; there are {', '.join(schema.names)}.")
        return how.key_column
    known = (name for name in _KEY_COLUMNS if name in schema.names and str(schema.field(name).type) in _TEXTS)
    return next(known, f"{image}.path" if _has_path(schema.field(image).type) else None)


def _has_path(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _column(file: pq.ParquetFile, name: str) -> Iterator[Any]:
    """A column's values, or those of a field within it, a batch at a time."""
    whole = name if name in file.schema_arrow.names else name.rpartition(".")[0]
    for batch in file.iter_batches(columns=[name]):
        for value in batch.column(whole).to_pylist():
            yield value if whole == name else (value or {}).get("path")


def _rows(file: pq.ParquetFile, first: int, end: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows from `first` up to `end`, out of the row groups in which they are."""
    starts = list(accumulate((file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)), initial=0))
    for group, (start, until) in enumerate(pairwise(starts)):
        if until <= first or start >= end:
            continue
        at = start
        for batch in file.iter_batches(_ROWS_OF_A_BATCH, row_groups=[group], columns=columns):
            low, high = max(first - at, 0), min(end - at, batch.num_rows)
            if low < high:
                yield from batch.slice(low, high - low).to_pylist()
            at += batch.num_rows
            if at >= end:
                return


def _bytes_of(value: Any, how: ReadConfig) -> bytes | CflowRayError:
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        return RecordError("the row holds no image", "no_image")
    return too_large(len(content), how) or content


@contextmanager
def _opened(storage: Storage, name: str) -> Iterator[pq.ParquetFile]:
    with storage.open(name) as file, pq.ParquetFile(file) as parquet:
        yield parquet
