"""From a span of a plan to the records of its chunks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice

from cflow_ray.data.archives import Record, ShardIndex, is_streamed, read_records, stream_records
from cflow_ray.errors import CflowRayError, RecordError
from cflow_ray.score.plan import Plan, Span, read_length, read_planned_index, write_length
from cflow_ray.score.rows import kind_of
from cflow_ray.store.results import UNREADABLE
from cflow_ray.store.storage import Storage

Chunk = tuple[int, Iterable[Record]]
"""The number of the first record, and all of them; to be read to its end before the next chunk is asked for."""


def read_chunks(span: Span, plan: Plan, output: Storage) -> Iterator[Chunk]:
    """The chunks of a span in order; a record that cannot be read has its error as content."""
    if is_streamed(plan.shard(span.shard).shard):
        return _streamed(span, plan, output)
    return _indexed(span, plan, output)


def _indexed(span: Span, plan: Plan, output: Storage) -> Iterator[Chunk]:
    shard = plan.shard(span.shard).shard
    index = _index(output.uri, json.dumps(dict(output.options), sort_keys=True), plan.id, span.shard)
    damage = [] if index.damage is None else [Record("", RecordError(index.damage, "damaged_archive"))]
    for first in span.firsts:
        end = first + plan.chunk_records
        records = read_records(shard, index.members[first:end], output.options, plan)
        yield first, chain(records, damage if end >= len(index) else ())


def _streamed(span: Span, plan: Plan, output: Storage) -> Iterator[Chunk]:
    firsts = frozenset(span.firsts)
    total, broken_off = 0, False

    def counted() -> Iterator[Record]:
        nonlocal total, broken_off
        for record in stream_records(plan.shard(span.shard).shard, output.options, plan):
            total += 1
            broken_off = _is_broken_off(record)
            yield record

    stream, is_given = counted(), True
    while (head := next(stream, None)) is not None:
        first = total - 1
        chunk = chain([head], islice(stream, plan.chunk_records - 1))
        is_given = (first in firsts) != span.to_end
        if is_given:
            yield first, chunk
        deque(chunk, maxlen=0)
    # A row that was given says that there is more, which --retry-errors reads; a length from before stays.
    if span.to_end and (not broken_off or (is_given and read_length(output, span.shard) is None)):
        write_length(output, span.shard, total)


def _is_broken_off(record: Record) -> bool:
    """Whether the store, not the archive, is why nothing can be read from here on."""
    return isinstance(record.content, CflowRayError) and kind_of(record.content) == UNREADABLE


@lru_cache(maxsize=4)
def _index(output: str, storage_options_json: str, plan_id: str, shard: str) -> ShardIndex:
    """A shard's records as that plan found them."""
    return read_planned_index(Storage(output, json.loads(storage_options_json)), shard)
