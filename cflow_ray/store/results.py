"""The score table: its schema, the parts that make it (which are also the ledger of what is done), reading it back."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

FORMAT_VERSION = 1

REGION_TYPE = pa.struct(
    [("box", pa.list_(pa.int32(), 4)), ("area", pa.float64()), ("peak", pa.float32())],
)

SCORE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("checkpoint", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("is_anomaly", pa.bool_()),
        pa.field("threshold", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("frame", pa.list_(pa.int32(), 4)),
        pa.field("regions", pa.list_(REGION_TYPE)),
        pa.field("map", pa.string()),
        pa.field("fields", pa.string()),
        pa.field("error", pa.string()),
        pa.field("error_kind", pa.string()),
    ],
    metadata={"cflow_ray.format_version": str(FORMAT_VERSION)},
)
"""One row a record. `frame` is what the map covers of the original: left, top, width, height.

`map` names the side-car tar (below the results) that holds `<key>.png`, 16 bit, value x 65535. `error_kind` is a word
to count by where `error` is a sentence; `fields` is a JSON object of what side-cars or a manifest say of the record."""

UNREADABLE = "unreadable"
"""The kind of error of a record that the store did not give."""
_PART = re.compile(r"shard=(?P<shard>[^/]+)/part-(?P<first>\d{9,})\.parquet")


@dataclass(frozen=True, order=True)
class PartName:
    """The one place a chunk's rows go: its shard and the number of its first record."""

    shard: str
    first: int

    @property
    def path(self) -> str:
        """Path of the Parquet file below the results."""
        return f"shard={self.shard}/part-{self.first:09d}.parquet"

    @property
    def maps_path(self) -> str:
        """Path of the side-car tar with the chunk's heat maps, where readers of a folder of Parquet do not look."""
        return f"_maps/shard={self.shard}/part-{self.first:09d}.tar"


def write_part(results: Storage, name: PartName, rows: Sequence[Mapping[str, Any]], maps: Mapping[str, bytes]) -> int:
    """Write a chunk: its maps first, then its rows, so that a part that is there is complete. Bytes written."""
    tar = _tar(maps) if maps else b""
    if tar:
        results.write(name.maps_path, tar)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCORE_SCHEMA), buffer, compression="zstd")
    results.write(name.path, buffer.getvalue())
    return len(tar) + buffer.tell()


def finished_parts(results: Storage) -> set[PartName]:
    """The ledger: every chunk whose part is written."""
    matches = (_PART.fullmatch(path) for path in results.files())
    return {PartName(match["shard"], int(match["first"])) for match in matches if match}


def read_results(results: Storage) -> pa.Table:
    """All rows, in order of shard and record; raises DataError where there are none or one is damaged."""
    return pa.concat_tables([read_columns(results, part, SCORE_SCHEMA.names) for part in parts_of(results)])


def parts_of(results: Storage) -> list[PartName]:
    """The parts of a score table, in order of shard and record; raises DataError where there is none."""
    parts = sorted(finished_parts(results))
    if not parts:
        raise DataError(f"{results.uri} holds no score table. Run: cflow-ray score ... --output {results.uri}")
    return parts


def unreadable_parts(results: Storage, parts: Iterable[PartName]) -> set[PartName]:
    """The parts with records whose bytes could not be read, which may be otherwise another time."""
    return {
        part for part in parts if UNREADABLE in read_columns(results, part, ["error_kind"])["error_kind"].to_pylist()
    }


def read_columns(results: Storage, name: PartName, columns: Sequence[str]) -> pa.Table:
    """Some columns of one part; raises DataError where it is damaged."""
    schema = pa.schema([SCORE_SCHEMA.field(column) for column in columns], SCORE_SCHEMA.metadata)
    try:
        table = pq.read_table(io.BytesIO(results.read(name.path)), columns=list(columns))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _damaged(results, name, error) from error


def _damaged(results: Storage, name: PartName, error: Exception) -> DataError:
    where = results.join(name.path)
    return DataError(f"{where} is no part of a score table: {error}. Delete it and run the job again.")


def read_maps(results: Storage, path: str) -> dict[str, bytes]:
    """PNG bytes by record key of one side-car tar."""
    with tarfile.open(fileobj=io.BytesIO(results.read(path))) as tar:
        return {info.name.removesuffix(".png"): _content(tar, info) for info in tar}


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    return file.read() if file else b""


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, content in files.items():
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
