"""The two stages a chunk goes through: read and decode in one process, score and write in another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from cflow_ray.config import ScoreConfig
from cflow_ray.data.archives import Record
from cflow_ray.data.images import encode_map, prepare
from cflow_ray.errors import CflowRayError
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.device import prepared_device
from cflow_ray.model.verdict import judge
from cflow_ray.score.pace import BatchSize
from cflow_ray.score.plan import Plan, PlannedCheckpoint, Span, read_own_plan
from cflow_ray.score.reading import read_chunks
from cflow_ray.score.rows import Row, content_of, count_rows, error_columns, image_id, row_of
from cflow_ray.store.registry import CheckpointKey, Registry
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage

# A chunk travels as one row of Ray Data, a dict: `shard`, `first`, `records` (a list of dicts of key, category, fields,
# error, error_kind, width, height, frame, shape), `pixels`, the uint8 (3, *shape) images of the records without error,
# end to end, and what reading took.

_CAPACITY_BYTES = 2 * 2**30  # for the detectors of an actor


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
        return ChunkScorer(self._config, self._plan_id)


class ChunkScorer:
    """Scores decoded chunks with the planned checkpoints and writes their parts."""

    def __init__(self, config: ScoreConfig, plan_id: str) -> None:
        torch.set_num_threads(1)  # before the bank: its runtime takes as many
        device = prepared_device(config.cluster.resources.gpu)
        self._results = Storage(config.output, config.storage_options)
        self._plan = read_own_plan(self._results, plan_id)
        self._batch_size = BatchSize(config.batch_size)
        registry = Registry(Storage(self._plan.registry, config.storage_options))
        self._bank = registry.bank(_CAPACITY_BYTES, device, config.runtime)
        self._broken: dict[str, str] = {}

    def __call__(self, chunk: Row) -> Row:
        """From a decoded chunk to what the driver counts: rows, errors and seconds."""
        start = perf_counter()
        images, usable = _unpack(chunk), []
        for number in images:
            record = chunk["records"][number]
            if self._loads(record["category"]):
                usable.append(number)
            else:
                record |= {"error": self._broken[record["category"]], "error_kind": "broken_checkpoint"}
        findings = self._score([images[number] for number in usable], [chunk["records"][n] for n in usable])
        rows, maps = self._rows(chunk, dict(zip(usable, findings, strict=True)))
        scored = perf_counter()
        written = write_part(self._results, PartName(chunk["shard"], chunk["first"]), rows, maps)
        return {
            **count_rows(rows),
            "bytes_read": chunk["bytes_read"],
            "bytes_written": written,
            "read_seconds": chunk["read_seconds"],
            "decode_seconds": chunk["decode_seconds"],
            "score_seconds": scored - start,
            "write_seconds": perf_counter() - scored,
        }

    def _loads(self, category: str) -> bool:
        """Whether the category's detector can be used; a damaged checkpoint costs its own rows, not the job."""
        if category not in self._broken:
            try:
                self._bank.detector(self._key(category))
            except CflowRayError as error:
                self._broken[category] = str(error)
        return category not in self._broken

    def _key(self, category: str) -> CheckpointKey:
        return category, self._plan.checkpoints[category].version

    def _score(self, images: Sequence[Tensor], records: Sequence[Row]) -> list[Finding]:
        # By category, so that a batch holds few of them: one pass through the encoder, and one a category through its flow.
        order = sorted(range(len(images)), key=lambda number: str(records[number]["category"]))
        findings: dict[int, Finding] = {}
        while order:
            batch, order = order[: self._batch_size.now], order[self._batch_size.now :]
            start = perf_counter()
            keys = [self._key(records[number]["category"]) for number in batch]
            findings |= zip(batch, self._bank.score_batch([images[number] for number in batch], keys), strict=True)
            self._batch_size.took(len(batch), perf_counter() - start)
        return [findings[number] for number in range(len(images))]

    def _rows(self, chunk: Row, findings: Mapping[int, Finding]) -> tuple[list[Row], dict[str, bytes]]:
        part = PartName(chunk["shard"], chunk["first"])
        rows, maps = [], {}
        for number, record in enumerate(chunk["records"]):
            row = {name: record[name] for name in ("key", "category", "fields")}
            row["image_id"] = image_id(part.shard, record, part.first + number)
            if number not in findings:
                rows.append(row | {"error": record["error"], "error_kind": record["error_kind"]})
                continue
            checkpoint = self._plan.checkpoints[record["category"]]
            detector = self._bank.detector(self._key(record["category"]))
            row |= _scored(record, findings[number], detector, checkpoint)
            if self._plan.maps == "all" or (self._plan.maps == "anomalous" and row["is_anomaly"]):
                map_HW = findings[number].map_HW
                maps[record["key"]] = encode_map(map_HW, self._plan.map_format, self._plan.map_size)
                row["map"] = part.maps_path
            rows.append(row)
        return rows, maps


def _scored(record: Row, finding: Finding, detector: Detector, checkpoint: PlannedCheckpoint) -> Row:
    frame = tuple(record["frame"])
    verdict = judge(finding.score, finding.map_HW, detector.calibration, checkpoint.target_fpr, frame)
    of_record = {name: record[name] for name in ("width", "height", "frame")}
    return {**asdict(verdict), **of_record, "checkpoint": checkpoint.version}


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
    return row, image.pixels_3HW.numpy().tobytes()


def _unpack(chunk: Row) -> dict[int, Tensor]:
    """The images (3, H, W) of a chunk by the number of their record."""
    flat = torch.from_numpy(np.frombuffer(chunk["pixels"], dtype=np.uint8).copy())
    images, at = {}, 0
    for number, record in enumerate(chunk["records"]):
        if record["error"] is None:
            height, width = record["shape"]
            length = 3 * height * width
            images[number] = flat[at : at + length].view(3, height, width)
            at += length
    return images
