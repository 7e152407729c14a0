"""The two stages a chunk goes through: read and decode in one process, score and write in another.

Neither the driver nor who reads imports torch: 3 CPU-seconds and 400 MB of every process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

from cflow_ray.config import ScoreConfig
from cflow_ray.data.archives import Record
from cflow_ray.data.images import prepare
from cflow_ray.errors import CflowRayError
from cflow_ray.score.plan import Plan, Span, read_own_plan
from cflow_ray.score.reading import read_chunks
from cflow_ray.score.rows import Row, content_of, error_columns, row_of
from cflow_ray.store.storage import Storage

if TYPE_CHECKING:
    from cflow_ray.score.scorer import ChunkScorer

# A chunk travels as one row of Ray Data, a dict: `shard`, `first`, `records` (a list of dicts of key, category, fields,
# error, error_kind, width, height, frame, shape), `pixels`, the uint8 (3, *shape) images of the records without error,
# end to end, and what reading took.


class ReadSpan:
    """Reads and decodes the chunks of a span, one after the other; a record that cannot be carries its error on."""

    def __init__(self, config: ScoreConfig, plan_id: str) -> None:
        self._config = config
        self._plan_id = plan_id

    def __call__(self, row: Row) -> Iterator[Row]:
        """From {span} to decoded chunks.

        Ray may run it again from the start for one output that was lost, so the chunks depend on the span alone and
        not on what has been written meanwhile.
        """
        span = Span.from_json(row["span"])
        output, options = self._config.output, self._config.storage_options
        plan = _plan(output, json.dumps(options, sort_keys=True), self._plan_id)
        for first, records in read_chunks(span, plan, Storage(output, options)):
            yield _decoded_chunk(plan, span.shard, first, records)


class ScoreChunk:
    """The actor of the pipeline.

    What it needs is opened with the first chunk: what a constructor raises reaches the driver as text only.
    """

    def __init__(self, config: ScoreConfig, plan_id: str) -> None:
        self._config = config
        self._plan_id = plan_id

    def __call__(self, chunk: Row) -> Row:
        """From a decoded chunk to what the driver counts: rows, errors and seconds."""
        return self._scorer(chunk)

    @cached_property
    def _scorer(self) -> ChunkScorer:
        from cflow_ray.score.scorer import ChunkScorer  # noqa: PLC0415  # with torch

        return ChunkScorer(self._config, self._plan_id)


@lru_cache(maxsize=1)
def _plan(output: str, storage_options_json: str, plan_id: str) -> Plan:
    """The plan, read once a process for its many spans."""
    return read_own_plan(Storage(output, json.loads(storage_options_json)), plan_id)


def _decoded_chunk(plan: Plan, shard: str, first: int, records: Iterable[Record]) -> Row:
    start, decode_seconds, bytes_read = perf_counter(), 0.0, 0
    decoded, pixels = [], bytearray()
    for record in records:
        begun = perf_counter()
        row, image = _decoded(plan, record)
        decode_seconds += perf_counter() - begun
        decoded.append(row)
        pixels += image
        bytes_read += len(record.content) if isinstance(record.content, bytes) else 0
    return {
        "shard": shard,
        "first": first,
        "records": decoded,
        "pixels": bytes(pixels),
        "bytes_read": bytes_read,
        "read_seconds": perf_counter() - start - decode_seconds,
        "decode_seconds": decode_seconds,
    }


def _decoded(plan: Plan, record: Record) -> tuple[Row, bytes]:
    """The record of a chunk and its pixels, empty where it has an error."""
    row = row_of(record) | {"width": None, "height": None, "frame": None, "shape": [0, 0]}
    try:
        content = content_of(record)
        row["category"] = plan.category_of(record)
        how = plan.checkpoints[row["category"]].input
        assert how is not None, "this plan is one for a server"
        image = prepare(content, how, plan.max_pixels)
    except CflowRayError as error:
        return row | error_columns(error), b""
    shape = list(image.pixels_3HW.shape[1:])
    row |= {"width": image.width, "height": image.height, "frame": list(image.frame), "shape": shape}
    return row, image.pixels_3HW.tobytes()
