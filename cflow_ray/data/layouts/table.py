"""A sample table in a file: read from Parquet or CSV, written as Parquet."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cflow_ray.config import DataConfig
from cflow_ray.data.layouts.tree import inside
from cflow_ray.data.samples import DataSet, Sample
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.store.storage import Storage, read_file, split_uri, write_file

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("defect", pa.string()),
        pa.field("mask", pa.string()),
    ]
)

_TEXT = ("image", "category", "split", "defect", "mask")


def read_table(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """A Parquet or CSV file with columns image, category, split and, if known, label, defect, mask.

    Paths are relative to `root` or, without it, to the table's folder. A mask that ends in `/` is a folder of masks.
    """
    folder, name = split_uri(config.data)
    table = _parse_table(name, read_file(config.data, storage_options))
    absent = [column for column in ("image", "category", "split") if column not in table.column_names]
    if absent:
        raise DataError(f"the table {config.data} lacks the columns {absent}; it has {table.column_names}.")
    samples = [_table_sample(row, number, config.data) for number, row in enumerate(table.to_pylist(), start=1)]
    return DataSet(Storage(config.root or folder, storage_options), samples)


def save_table(data_set: DataSet, uri: str, storage_options: Mapping[str, Any]) -> None:
    """Write a data set's samples as a Parquet file that `read_table` reads back, given the same root."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(to_table(data_set.samples), buffer)
    write_file(uri, buffer.getvalue(), storage_options)


def to_table(samples: Iterable[Sample]) -> pa.Table:
    """Samples as an Arrow table of SAMPLE_SCHEMA."""
    return pa.Table.from_pylist([asdict(sample) for sample in samples], schema=SAMPLE_SCHEMA)


def _parse_table(name: str, content: bytes) -> pa.Table:
    kind = name.lower().rpartition(".")[2]
    try:
        if kind == "parquet":
            return pyarrow.parquet.read_table(io.BytesIO(content))
        if kind == "csv":
            # Text stays as it is written: category 007, and one that is called NA.
            text = pyarrow.csv.ConvertOptions(column_types={column: pa.string() for column in _TEXT})
            return pyarrow.csv.read_csv(io.BytesIO(content), convert_options=text)
    except (pa.ArrowException, OSError) as error:  # pyarrow says OSError of a damaged Parquet file
        raise DataError(f"{name} does not parse as {kind}: {error}") from error
    raise ConfigError(f"{name!r} names no table; give a .parquet or .csv file for layout 'table'.")


def _table_sample(row: Mapping[str, Any], number: int, table: str) -> Sample:
    label, text = row.get("label"), {column: _text(row.get(column)) for column in _TEXT}
    if label not in (0, 1, None):
        raise DataError(f"row {number} of {table} has label {label!r}; allowed are 0 (good), 1 (anomaly) and empty.")
    image, category, split = (_required(text, column, number, table) for column in ("image", "category", "split"))
    for path in (image, text["mask"]):
        inside(path or "", f"row {number} of {table}")
    return Sample(image, category, split, None if label is None else int(label), text["defect"], text["mask"])


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)


def _required(text: Mapping[str, str | None], column: str, number: int, table: str) -> str:
    value = text[column]
    if value is None:
        raise DataError(f"row {number} of {table} has no {column}.")
    return value
