"""Compaction of a score table: the parts of chunks that lie side by side become large parts, which queries want."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from cflow_ray.errors import DataError, MissingFileError
from cflow_ray.store.ahead import REQUESTS, computed_ahead
from cflow_ray.store.results import (
    SCORE_SCHEMA,
    Ledger,
    PartName,
    open_part,
    read_rows,
    shards_of,
)
from cflow_ray.store.storage import Storage

# A large part is written whole, then the parts that it is made of are removed. A part is only ever removed because
# another one that holds all its rows, and more, is there. So however often this runs at once and wherever it stops, the
# widest part of a record stays, and readers that go by the ledger read every record once.

_ROW_GROUP_ROWS = 131_072
"""An engine reads row groups in parallel and skips those that a filter rules out. Rows that would take more than a quarter
of a part in memory make smaller ones."""
_TRIES = 20
"""A shard is listed anew where a part is gone that was listed."""


@dataclass
class CompactionSummary:
    """What a compaction did."""

    output: str
    shards: int = 0
    parts_written: int = 0
    parts_removed: int = 0
    rows: int = 0
    """Of the parts that were written."""
    bytes_written: int = 0


def compact(
    results: Storage, part_bytes: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> CompactionSummary:
    """Merge parts of a shard whose records follow each other until they have `part_bytes`; larger ones stay as they are.

    A job may go on writing meanwhile: what has no part yet stays a gap between large parts. One large part is held in
    memory. `progress` gets finished and all shards. Raises DataError where there is no table or a part is damaged.
    """
    shards = shards_of(results)
    summary = CompactionSummary(results.uri)
    for shard in shards:
        for tries_left in reversed(range(_TRIES)):
            try:
                _compact_shard(results, shard, part_bytes, summary)
                break
            except MissingFileError:  # another compaction is at work there
                if not tries_left:
                    raise
        summary.shards += 1
        progress(summary.shards, len(shards))
    return summary


def _compact_shard(results: Storage, shard: str, part_bytes: int, summary: CompactionSummary) -> None:
    """Raises MissingFileError where a part is gone that was listed; what was done until then stays."""
    sizes = dict(results.walk(f"shard={shard}/"))
    parts = list(Ledger(sizes).parts(shard))
    _remove_covered(results, sizes, parts, summary)
    merge: _Merge | None = None
    for name, content in zip(parts, computed_ahead(partial(_content_of_chunk, results), parts, REQUESTS), strict=True):
        is_large = sizes[name.path] >= part_bytes
        if merge is not None and not merge.takes(name, is_large):
            merge.finish(summary)
            merge = None
        if merge is None:
            merge = _Merge(results, name.first, part_bytes)
        merge.add(name, content, is_large)
    if merge is not None:
        merge.finish(summary)


def _content_of_chunk(results: Storage, name: PartName) -> bytes | None:
    """A small part whole; None for one that is compacted, which may not be needed."""
    return results.read(name.path) if name.end is None else None


def _remove_covered(results: Storage, sizes: dict[str, int], parts: list[PartName], summary: CompactionSummary) -> None:
    """Remove what an earlier compaction left: parts whose rows are all in one of `parts`, once those are seen to be whole."""
    needed = {name.path for name in parts}
    covered = [path for path in sizes if path not in needed and PartName.of(path)]
    if not covered:
        return
    for name in parts:
        if name.end is not None:
            with suppress(MissingFileError), open_part(results, name):
                pass
    _remove(results, covered)
    summary.parts_removed += len(covered)


def _remove(results: Storage, paths: Sequence[str]) -> None:
    deque(computed_ahead(results.remove, paths, REQUESTS), maxlen=0)


class _Merge:
    """A large part in the making."""

    def __init__(self, results: Storage, first: int, part_bytes: int) -> None:
        self._results = results
        self._first = self._end = first
        self._part_bytes = part_bytes
        self._parts: list[PartName] = []
        self._unread: PartName | None = None
        self._is_full = False
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, SCORE_SCHEMA, compression="zstd")
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0

    def takes(self, name: PartName, is_large: bool) -> bool:
        """Whether the next part belongs to this one: it goes on where this ends and both are small, or they overlap.

        Parts overlap after two compactions at once, of different sizes; to merge them is what never loses a row.
        """
        if name.first < self._end:
            self._refuse_overlong(name)
            return True
        return name.first == self._end and not self._is_full and not is_large

    def add(self, name: PartName, content: bytes | None, is_large: bool) -> None:
        """Take the rows of a part, whose content may be at hand.

        A first one that is compacted already is read when there is a second.
        """
        if not self._parts and name.end is not None:
            self._unread, self._end, self._is_full = name, name.end, is_large
            self._parts.append(name)
            return
        if self._unread is not None:
            self._end = self._unread.first
            self._read(self._unread, None)
            self._unread = None
        if self._read(name, content):  # a part without rows stays where it is: no span of records would cover it
            self._parts.append(name)
        self._is_full = is_large or self._buffer.tell() >= self._part_bytes

    def finish(self, summary: CompactionSummary) -> None:
        """Write the large part, then remove those it is made of; nothing happens where it is of one only."""
        if len(self._parts) < 2:
            return
        self._flush()
        self._writer.close()
        content = self._buffer.getvalue()
        self._results.write(PartName(self._parts[0].shard, self._first, self._end).path, content)
        _remove(self._results, [name.path for name in self._parts])
        summary.parts_written += 1
        summary.parts_removed += len(self._parts)
        summary.rows += self._end - self._first
        summary.bytes_written += len(content)

    def _read(self, name: PartName, content: bytes | None) -> int:
        """Take a part's rows from record `end` on; returns how many it has."""
        with open_part(self._results, name, content) as file:
            others = set(file.schema_arrow.names) - set(SCORE_SCHEMA.names)
            if others:
                raise DataError(
                    f"{self._results.join(name.path)} has columns that this release does not know: "
                    f"{', '.join(sorted(others))}. Compact it with the release that wrote it."
                )
            for table in read_rows(file, skip=self._end - name.first):
                self._append(table)
            rows = int(file.metadata.num_rows)
        self._end = name.first + rows
        return rows

    def _append(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._pending_rows += table.num_rows
        self._pending_bytes += table.nbytes
        if self._pending_rows >= _ROW_GROUP_ROWS or self._pending_bytes >= self._part_bytes / 4:
            self._flush()

    def _flush(self) -> None:
        """Write what is pending as one row group."""
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=self._pending_rows)
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def _refuse_overlong(self, name: PartName) -> None:
        last = self._parts[-1]
        if last.end is None:
            raise DataError(
                f"{self._results.join(last.path)} has {self._end - last.first} rows and reaches into {name.path}. "
                "Delete it and run the job again."
            )
