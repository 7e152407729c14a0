"""From a span of a plan to the records of its chunks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice

from cflow_ray.data.archives import Record, ShardIndex, is_streamed, read_records, stream_records
from cflow_ray.errors import RecordError
from cflow_ray.score.plan import Plan, Span, read_planned_index, write_length
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
    total = 0

    def counted() -> Iterator[Record]:
        nonlocal total
        for record in stream_records(plan.shard(span.shard).shard, output.options, plan):
            total += 1
            yield record

    stream = counted()
    while (head := next(stream, None)) is not None:
        first = total - 1
        chunk = chain([head], islice(stream, plan.chunk_records - 1))
        if (first in firsts) != span.to_end:
            yield first, chunk
        deque(chunk, maxlen=0)
    if span.to_end:
        write_length(output, span.shard, total)


@lru_cache(maxsize=4)
def _index(output: str, storage_options_json: str, plan_id: str, shard: str) -> ShardIndex:
    """A shard's records as that plan found them."""
    return read_planned_index(Storage(output, json.loads(storage_options_json)), shard)
