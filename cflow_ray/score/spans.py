"""What of a plan is still to do, as spans of chunks that one task each reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cflow_ray.score.plan import Plan, PlannedShard, Span, read_length
from cflow_ray.store.results import PartName
from cflow_ray.store.storage import Storage

_SPANS_OF_A_WORKER = 8  # so many at least, where there are chunks enough, that all end at about the same time
_LONGEST = 64  # chunks of a span: what one lost task costs to read again


@dataclass(frozen=True)
class Pending:
    """The rest of a job."""

    shards: tuple[Span, ...]
    """Of each shard with something to do all of it."""
    streamed: frozenset[str]
    """The ids of shards that cannot be divided."""
    chunks: int
    """All that are known; a shard that was never read to its end adds those that are done."""
    done: int

    def spans(self, workers: int) -> list[Span]:
        """Spans of about equal length, short enough that every worker gets several."""
        step = max(1, min(_LONGEST, (self.chunks - self.done) // (workers * _SPANS_OF_A_WORKER)))
        divided = []
        for whole in self.shards:
            if whole.shard in self.streamed:
                divided.append(whole)
                continue
            firsts = whole.firsts
            divided += [Span(whole.shard, firsts[at : at + step]) for at in range(0, len(firsts), step)]
        return divided


def pending(plan: Plan, done: Iterable[PartName], output: Storage) -> Pending:
    """The chunks of a plan that have no part yet."""
    finished: dict[str, set[int]] = defaultdict(set)
    for part in done:
        finished[part.shard].add(part.first)
    lengths = {shard.id: _length(shard, output) for shard in plan.shards}
    spans = [_rest_of(plan, name, records, finished[name]) for name, records in lengths.items()]
    return Pending(
        shards=tuple(span for span in spans if span.firsts or span.to_end),
        streamed=frozenset(shard.id for shard in plan.shards if shard.records is None),
        chunks=sum(len(finished[name]) if n is None else plan.count(n) for name, n in lengths.items()),
        done=sum(len(finished[name]) for name in lengths),
    )


def _length(shard: PlannedShard, output: Storage) -> int | None:
    return shard.records if shard.records is not None else read_length(output, shard.id)


def _rest_of(plan: Plan, shard: str, records: int | None, finished: set[int]) -> Span:
    if records is None:
        return Span(shard, tuple(sorted(finished)), to_end=True)
    return Span(shard, tuple(first for first in range(0, records, plan.chunk_records) if first not in finished))
