"""The score table: its schema, the parts that make it (which are also the ledger of what is done), reading it back."""

from __future__ import annotations

import heapq
import io
import math
import re
import tarfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cflow_ray.errors import DataError, MissingFileError
from cflow_ray.store.ahead import REQUESTS, computed_ahead
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

`map` names the side-car tar (below the results) that holds `<key>.png` (16 bit, value x 65535; 8 bit, x 255) or
`<key>.npy` (float16). `error_kind` is a word to count by where `error` is a sentence; `fields` is a JSON object of what
side-cars or a manifest say of the record."""

UNREADABLE = "unreadable"
"""The kind of error of a record that the store did not give."""

_PART = re.compile(r"shard=(?P<shard>[^/]+)/part-(?P<first>\d{9,18})(?:-(?P<end>\d{9,18}))?\.parquet")
_NUMPY = b"\x93NUMPY"
_BATCH_ROWS = 16_384
_TRIES = 20  # to list a shard anew where a part is gone that was listed


@dataclass(frozen=True)
class PartName:
    """Where rows of a shard lie: those of one chunk, whose first record has the number `first`, or of many chunks."""

    shard: str
    first: int
    end: int | None = None
    """Of a compacted part, the number after its last record; its rows are those of all records from `first` on."""

    @classmethod
    def of(cls, path: str) -> PartName | None:
        """The name that has this path; None where it is that of another file."""
        match = _PART.fullmatch(path)
        if match is None:
            return None
        name = cls(match["shard"], int(match["first"]), int(match["end"]) if match["end"] else None)
        return name if name.path == path else None

    @property
    def path(self) -> str:
        """Path of the Parquet file below the results."""
        end = "" if self.end is None else f"-{self.end:09d}"
        return f"shard={self.shard}/part-{self.first:09d}{end}.parquet"

    @property
    def maps_path(self) -> str:
        """Path of the side-car tar with the chunk's heat maps, where readers of a folder of Parquet do not look."""
        return f"_maps/shard={self.shard}/part-{self.first:09d}.tar"


class Ledger:
    """Which chunks are done: those with a part of their own, and those whose rows are in a compacted part.

    A part of one chunk takes 8 bytes. Of parts with the same rows - compaction was stopped, or ran twice at once - the
    widest counts.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """From a listing of the results; other files may be in it."""
        chunks: dict[str, array[int]] = {}
        spans: dict[str, list[tuple[int, int]]] = {}
        for path in paths:
            name = PartName.of(path)
            if name is None:
                continue
            if name.end is None:
                chunks.setdefault(name.shard, array("q")).append(name.first)
            else:
                spans.setdefault(name.shard, []).append((name.first, name.end))
        self._chunks = {shard: array("q", sorted(firsts)) for shard, firsts in chunks.items()}
        self._spans = {shard: _widest(of_shard) for shard, of_shard in spans.items()}

    @property
    def shards(self) -> list[str]:
        """The shards that have parts."""
        return sorted({*self._chunks, *self._spans})

    def __iter__(self) -> Iterator[PartName]:
        """The parts that hold all rows, in order of shard and record."""
        return (part for shard in self.shards for part in self.parts(shard))

    def __contains__(self, name: PartName) -> bool:
        """Whether the rows that belong into a part are there."""
        if self._is_compacted(name.shard, name.first):
            return True
        firsts = self._chunks.get(name.shard, array("q"))
        at = bisect_left(firsts, name.first)
        return at < len(firsts) and firsts[at] == name.first

    def parts(self, shard: str, start: int = 0) -> Iterator[PartName]:
        """The parts that hold the rows of a shard from record `start` on, in order; where two overlap, it is by rows
        that are the same."""
        spans = (PartName(shard, first, end) for first, end in self._spans.get(shard, ()) if end > start)
        firsts = self._chunks.get(shard, array("q"))
        later = (firsts[at] for at in range(bisect_left(firsts, start), len(firsts)))
        chunks = (PartName(shard, first) for first in later if not self._is_compacted(shard, first))
        return heapq.merge(spans, chunks, key=lambda name: name.first)

    def _is_compacted(self, shard: str, record: int) -> bool:
        spans = self._spans.get(shard, ())
        at = bisect_right(spans, (record, math.inf)) - 1
        return at >= 0 and record < spans[at][1]


def _widest(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans (first, end) that lie in no other one; by first, and thereby by end."""
    kept: list[tuple[int, int]] = []
    for first, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or end > kept[-1][1]:
            kept.append((first, end))
    return kept


def write_part(results: Storage, name: PartName, rows: Sequence[Mapping[str, Any]], maps: Mapping[str, bytes]) -> int:
    """Write a chunk: its maps first, then its rows, so that a part that is there is complete. Bytes written."""
    tar = _tar(maps) if maps else b""
    if tar:
        results.write(name.maps_path, tar)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCORE_SCHEMA), buffer, compression="zstd")
    results.write(name.path, buffer.getvalue())
    return len(tar) + buffer.tell()


def finished_parts(results: Storage) -> Ledger:
    """The ledger of what is done; taken while the table is compacted it may lack some of it, which can be done again."""
    return Ledger(path for path, _ in results.walk("shard="))


def read_results(results: Storage) -> pa.Table:
    """All rows, in order of shard and record; raises DataError where there is no table or a part is damaged."""
    return read_table(results, SCORE_SCHEMA.names)


def read_table(results: Storage, columns: Sequence[str]) -> pa.Table:
    """Some columns of the same."""
    return pa.concat_tables([_schema_of(columns).empty_table(), *read_tables(results, columns)])


def read_tables(results: Storage, columns: Sequence[str] = tuple(SCORE_SCHEMA.names)) -> Iterator[pa.Table]:
    """The same, some columns of it even, as tables of up to 16,384 rows, one in memory at a time.

    Every record comes once, also while the table is being compacted.
    """
    for shard in shards_of(results):
        yield from read_shard(results, shard, columns)


def shards_of(results: Storage) -> list[str]:
    """The shards that have rows; raises DataError where there are none."""
    shards = [name.removeprefix("shard=") for name in results.folders() if name.startswith("shard=")]
    if not shards:
        raise _no_table(results)
    return shards


def _no_table(results: Storage) -> DataError:
    return DataError(f"{results.uri} holds no score table. Run: cflow-ray score ... --output {results.uri}")


def read_shard(results: Storage, shard: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The same of one shard."""
    known: set[str] = set()

    def list_from(record: int) -> Iterator[PartName]:
        known.update(path for path, _ in results.walk(f"shard={shard}/"))
        return Ledger(known).parts(shard, record)

    # A listing of many pages can miss a large part, written after its page was, and the small ones, removed before
    # theirs were; the next listing has it.
    list_from(0)
    record, parts, tries_left = 0, _read_ahead(results, list_from(0)), _TRIES
    while (found := next(parts, None)) is not None:
        name, content = found
        record = max(record, name.first)
        try:
            with open_part(results, name, content) as file:
                for table in read_rows(file, columns, skip=record - name.first):
                    record += table.num_rows
                    yield table
            tries_left = _TRIES
        except MissingFileError:  # it was compacted since it was listed
            tries_left -= 1
            if not tries_left:
                raise
            parts = _read_ahead(results, list_from(record))


def _read_ahead(results: Storage, parts: Iterable[PartName]) -> Iterator[tuple[PartName, bytes | None]]:
    """Parts, those of one chunk with their content where they are still there; compacted ones are too large for that."""

    def read(name: PartName) -> tuple[PartName, bytes | None]:
        return name, results.read_if_there(name.path) if name.end is None else None

    return computed_ahead(read, parts, REQUESTS)


def read_columns(results: Storage, name: PartName, columns: Sequence[str]) -> pa.Table:
    """Some columns of one part; raises DataError where it is damaged."""
    with open_part(results, name) as file:
        return pa.concat_tables([_schema_of(columns).empty_table(), *read_rows(file, columns)])


@contextmanager
def open_part(results: Storage, name: PartName, content: bytes | None = None) -> Iterator[pq.ParquetFile]:
    """A part, its content if that was read already, to read rows from.

    Raises MissingFileError where it is not there, DataError where it is damaged.
    """
    try:
        if name.end is None and content is None:
            content = results.read(name.path)
        with (
            results.open(name.path) if content is None else io.BytesIO(content) as source,
            pq.ParquetFile(source) as file,
        ):
            rows = file.metadata.num_rows
            if name.end is not None and name.first + rows != name.end:
                raise pa.ArrowInvalid(f"it has {rows} rows")
            yield file
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(
            f"{results.join(name.path)} is no part of a score table: {error}. Delete it and run the job again."
        ) from error


def read_rows(
    file: pq.ParquetFile, columns: Sequence[str] = tuple(SCORE_SCHEMA.names), skip: int = 0
) -> Iterator[pa.Table]:
    """Rows of an open part but for the first `skip`, under the table's schema."""
    schema = _schema_of(columns)
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
        table = pa.Table.from_batches([batch]).select(columns).cast(schema)
        if skip < table.num_rows:
            yield table.slice(skip)
        skip = max(0, skip - table.num_rows)


def _schema_of(columns: Sequence[str]) -> pa.Schema:
    """Some columns of the table's schema."""
    return pa.schema([SCORE_SCHEMA.field(column) for column in columns], metadata=SCORE_SCHEMA.metadata)


def read_maps(results: Storage, path: str) -> dict[str, bytes]:
    """Encoded heat maps by record key of one side-car tar."""
    with tarfile.open(fileobj=io.BytesIO(results.read(path))) as tar:
        return {info.name.rpartition(".")[0]: _content(tar, info) for info in tar}


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    return file.read() if file else b""


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, content in files.items():
            info = tarfile.TarInfo(f"{key}.{'npy' if content.startswith(_NUMPY) else 'png'}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
