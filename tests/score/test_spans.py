"""What is left of a job: every chunk without a part is in exactly one span."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.data.archives import Record
from cflow_ray.errors import RecordError, StorageError
from cflow_ray.score import reading
from cflow_ray.score.plan import Plan, PlannedShard, Span, read_length, write_length
from cflow_ray.score.reading import read_chunks
from cflow_ray.score.spans import pending
from cflow_ray.store.results import Ledger, PartName
from cflow_ray.store.storage import Storage

CHUNK = 10


def plan_of(*records: int | None) -> Plan:
    shards = [
        PlannedShard(id=f"s-{n}", uri=f"/{n}", kind="tar" if count is not None else "tar.gz", records=count)
        for n, count in enumerate(records)
    ]
    rest: dict[str, Any] = {"category": None, "category_pattern": "{category}/", "maps": "none", "target_fpr": None}
    return Plan(inputs=(), registry="r", chunk_records=CHUNK, checkpoints={}, shards=tuple(shards), **rest)


def ledger_of(*parts: tuple[str, int]) -> Ledger:
    return Ledger(PartName(*part).path for part in parts)


@pytest.fixture
def output() -> Storage:
    storage = Storage("memory://spans")
    for path in storage.files():
        storage.remove(path)
    return storage


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 200), max_size=8),
    workers=st.integers(1, 20),
    done=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 19))),
)
def test_every_chunk_that_is_not_done_is_in_one_span(
    counts: list[int], workers: int, done: set[tuple[int, int]]
) -> None:
    chunks = {(f"s-{n}", first) for n, count in enumerate(counts) for first in range(0, count, CHUNK)}
    finished = {(f"s-{shard}", CHUNK * number) for shard, number in done} & chunks
    rest = pending(plan_of(*counts), ledger_of(*finished), frozenset(), Storage("memory://none"))
    assert (rest.chunks, rest.done) == (len(chunks), len(finished))
    found = [(span.shard, first) for span in rest.spans(workers) for first in span.firsts]
    assert sorted(found) == sorted(chunks - finished)
    assert all(list(span.firsts) == sorted(span.firsts) for span in rest.spans(workers))


@pytest.mark.parametrize(("chunks", "workers", "length"), [(1, 2, 1), (16, 2, 1), (160, 2, 10), (10**5, 4, 64)])
def test_spans_are_short_enough_that_every_worker_gets_several(chunks: int, workers: int, length: int) -> None:
    spans = pending(plan_of(chunks * CHUNK), Ledger([]), frozenset(), Storage("memory://none")).spans(workers)
    assert {len(span.firsts) for span in spans[:-1]} <= {length}
    assert len(spans) == -(-chunks // length)


def test_a_streamed_shard_is_read_to_its_end_but_for_what_is_done(output: Storage) -> None:
    plan = plan_of(None, 25)
    rest = pending(plan, ledger_of(("s-0", 20), ("s-0", 0), ("s-1", 10)), frozenset(), output)
    assert rest.shards == (Span("s-0", (0, 20), to_end=True), Span("s-1", (0, 20)))
    assert (rest.chunks, rest.done) == (2 + 3, 3)


def test_a_streamed_shard_whose_length_is_known_is_read_once_for_what_is_left(output: Storage) -> None:
    write_length(output, "s-0", 995)
    rest = pending(plan_of(None), ledger_of(("s-0", 0)), frozenset(), output)
    assert rest.spans(2) == [Span("s-0", tuple(range(10, 1000, 10)))]
    assert (rest.chunks, rest.done) == (100, 1)
    write_length(output, "s-0", 10)
    assert pending(plan_of(None), ledger_of(("s-0", 0)), frozenset(), output).shards == ()


def test_a_streamed_shard_that_is_read_again_where_the_store_broke_it_off_is_read_to_its_end(output: Storage) -> None:
    """What it gave before tells of no end."""
    write_length(output, "s-0", 16)
    rest = pending(plan_of(None), ledger_of(("s-0", 0), ("s-0", 10)), {PartName("s-0", 10)}, output)
    assert rest.shards == (Span("s-0", (0,), to_end=True),)
    assert (rest.chunks, rest.done) == (2, 1)


LOST = Record("", StorageError("the store is away"))
DAMAGED = Record("", RecordError("cut off", "damaged_archive"))


@pytest.mark.parametrize(
    "case",
    [
        (None, (), 25, [], [0, 10, 20], 25),
        (None, (), 15, [LOST], [0, 10], 16),
        (None, (), 15, [DAMAGED], [0, 10], 16),
        (None, (0, 10), 15, [LOST], [], None),  # within what a run before has read: no row would say that there is more
        (None, (0, 10), 15, [DAMAGED], [], 16),
        (16, (0,), 45, [], [10, 20, 30, 40], 45),
        (16, (0,), 12, [LOST], [10], 16),
        (45, (0, 20, 30, 40), 12, [LOST], [10], 45),
    ],
)
def test_the_length_of_a_streamed_shard_is_what_its_rows_tell_of(
    case: tuple[int | None, tuple[int, ...], int, list[Record], list[int], int | None],
    output: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Known length, chunks done, records of the stream and how it ends; chunks given and length noted."""
    known, done, records, last, given, length = case
    stream = [Record(str(number), b"") for number in range(records)] + last
    monkeypatch.setattr(reading, "stream_records", lambda *_: iter(stream))
    if known is not None:
        write_length(output, "s-0", known)
    chunks = read_chunks(Span("s-0", done, to_end=True), plan_of(None), output)
    found = {first: len(list(chunk)) for first, chunk in chunks}
    assert list(found) == given
    assert all(count == min(CHUNK, len(stream) - first) for first, count in found.items())
    assert read_length(output, "s-0") == length
