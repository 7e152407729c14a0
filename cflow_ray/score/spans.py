"""What of a plan is still to do, as spans of chunks that one task each reads."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from cflow_ray.score.plan import Plan, PlannedShard, Span, read_length
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.results import UNREADABLE, Ledger, PartName, read_columns
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

    @property
    def due(self) -> int:
        """Chunks that are to be done, as far as they are known."""
        return self.chunks - self.done

    @property
    def is_open(self) -> bool:
        """Whether there are more chunks than are known."""
        return any(span.to_end for span in self.shards)

    def spans(self, workers: int) -> list[Span]:
        """Spans of about equal length, short enough that every worker gets several."""
        step = max(1, min(_LONGEST, self.due // (workers * _SPANS_OF_A_WORKER)))
        divided = []
        for whole in self.shards:
            if whole.shard in self.streamed:
                divided.append(whole)
                continue
            firsts = whole.firsts
            divided += [Span(whole.shard, firsts[at : at + step]) for at in range(0, len(firsts), step)]
        return divided


def pending(plan: Plan, ledger: Ledger, again: Set[PartName], output: Storage) -> Pending:
    """The chunks of a plan that have no part yet, and those whose part is to be made `again`."""
    broken_off = {part.shard for part in again}
    lengths = {
        # A stream that the store broke off has more records than it gave, which only reading it anew tells.
        shard.id: None if shard.records is None and shard.id in broken_off else length_of(shard, output)
        for shard in plan.shards
    }
    known = {name: chunk_firsts(plan, ledger, name, records) for name, records in lengths.items()}

    def is_due(shard: str, first: int) -> bool:
        part = PartName(shard, first)
        return part not in ledger or part in again

    spans = []
    for name, firsts in known.items():
        to_end = lengths[name] is None
        # Of a shard whose end is not known the span says what not to read.
        spans.append(Span(name, tuple(first for first in firsts if is_due(name, first) != to_end), to_end))
    chunks = sum(map(len, known.values()))
    due = sum(len(known[span.shard]) - len(span.firsts) if span.to_end else len(span.firsts) for span in spans)
    return Pending(
        shards=tuple(span for span in spans if span.firsts or span.to_end),
        streamed=frozenset(shard.id for shard in plan.shards if shard.records is None),
        chunks=chunks,
        done=chunks - due,
    )


def unreadable_parts(results: Storage, ledger: Ledger) -> frozenset[PartName]:
    """The chunks with records that the store did not give, which it may give another time; not those of compacted
    parts, which stay as they are."""

    def is_unreadable(part: PartName) -> bool:
        return UNREADABLE in read_columns(results, part, ("error_kind",))["error_kind"].to_pylist()

    chunks = [part for part in ledger if part.end is None]
    return frozenset(part for part, is_one in zip(chunks, computed_ahead(is_unreadable, chunks), strict=True) if is_one)


def length_of(shard: PlannedShard, output: Storage) -> int | None:
    """Records of a shard; None for a streamed one that was not read to its end yet."""
    return shard.records if shard.records is not None else read_length(output, shard.id)


def chunk_firsts(plan: Plan, ledger: Ledger, shard: str, records: int | None) -> Sequence[int]:
    """The first records of a shard's chunks: of all, or of those that have parts where its length is not known."""
    if records is not None:
        return range(0, records, plan.chunk_records)
    return [
        first
        for part in ledger.parts(shard)
        for first in range(part.first, part.end or part.first + 1, plan.chunk_records)
    ]
