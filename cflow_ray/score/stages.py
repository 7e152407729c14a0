"""The two stages a chunk goes through: read and decode in one process, score and write in another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cflow_ray.config import Runtime
from cflow_ray.data.archive import ShardIndex, read_records
from cflow_ray.data.images import encode_map, prepare
from cflow_ray.errors import CflowRayError, DataError, ImageError, StorageError
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.scoring import judge
from cflow_ray.score.plan import Chunk, Plan, PlannedCheckpoint, read_plan, read_planned_index
from cflow_ray.store.registry import CheckpointKey, Registry
from cflow_ray.store.results import write_part
from cflow_ray.store.storage import Storage

# A chunk travels as one row of Ray Data, a dict: `shard`, `first`, `records` (a list of dicts of key, category, error,
# width, height, frame, shape) and `pixels`, the uint8 (3, *shape) images of the records without error, end to end.

Row = dict[str, Any]


class ReadChunk:
    """Reads and decodes the records of a chunk; a record that cannot be read or decoded carries its error on."""

    def __init__(self, output: str, storage_options: Mapping[str, Any]) -> None:
        self._output = output
        self._storage_options = dict(storage_options)
        self._storage_options_json = json.dumps(self._storage_options, sort_keys=True)

    def __call__(self, row: Row) -> Row:
        """From {shard, first, count} to a decoded chunk."""
        start = perf_counter()
        plan, index = _planned(self._output, self._storage_options_json, row["shard"])
        wanted = index.members[row["first"] : row["first"] + row["count"]]
        records, pixels = [], bytearray()
        shard = plan.shard(row["shard"]).shard
        contents = read_records(shard, wanted, self._storage_options) if wanted else iter(())
        for key, content in contents:
            record, image = _decoded(plan, key, content)
            records.append(record)
            pixels += image
        if len(records) < row["count"]:
            records.append(_failed("", None, index.damage or "no such record"))
        return {
            "shard": row["shard"],
            "first": row["first"],
            "records": records,
            "pixels": bytes(pixels),
            "read_seconds": perf_counter() - start,
        }


class ScoreChunk:
    """Scores a decoded chunk with the planned checkpoints and writes its part; the actor of the pipeline."""

    def __init__(
        self,
        output: str,
        storage_options: Mapping[str, Any],
        batch_size: int,
        capacity_bytes: int,
        runtime: Runtime = "auto",
    ) -> None:
        torch.set_num_threads(1)  # before the bank: its runtime takes as many
        self._results = Storage(output, storage_options)
        self._plan = read_plan(self._results)
        self._batch_size = batch_size
        registry = Registry(Storage(self._plan.registry, storage_options))
        self._bank = registry.bank(capacity_bytes, runtime=runtime)
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
                record["error"] = self._broken[record["category"]]
        findings = self._score([images[number] for number in usable], [chunk["records"][n] for n in usable])
        rows, maps = self._rows(chunk, dict(zip(usable, findings, strict=True)))
        write_part(self._results, Chunk(chunk["shard"], chunk["first"], len(rows)).part, rows, maps)
        return {
            "rows": len(rows),
            "errors": sum(row.get("error") is not None for row in rows),
            "anomalies": sum(bool(row.get("is_anomaly")) for row in rows),
            "read_seconds": chunk["read_seconds"],
            "score_seconds": perf_counter() - start,
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
        keys = [self._key(record["category"]) for record in records]
        findings: list[Finding] = []
        for at in range(0, len(images), self._batch_size):
            until = at + self._batch_size
            findings += self._bank.score_batch(images[at:until], keys[at:until])
        return findings

    def _rows(self, chunk: Row, findings: Mapping[int, Finding]) -> tuple[list[Row], dict[str, bytes]]:
        part = Chunk(chunk["shard"], chunk["first"], len(chunk["records"])).part
        rows, maps = [], {}
        for number, record in enumerate(chunk["records"]):
            row = {
                "image_id": f"{chunk['shard']}/{record['key']}",
                "key": record["key"],
                "category": record["category"],
            }
            if number not in findings:
                rows.append(row | {"error": record["error"]})
                continue
            checkpoint = self._plan.checkpoints[record["category"]]
            detector = self._bank.detector(self._key(record["category"]))
            row |= _scored(record, findings[number], detector, checkpoint)
            if self._plan.maps == "all" or (self._plan.maps == "anomalous" and row["is_anomaly"]):
                maps[record["key"]] = encode_map(findings[number].map_HW)
                row["map"] = part.maps_path
            rows.append(row)
        return rows, maps


def _scored(record: Row, finding: Finding, detector: Detector, checkpoint: PlannedCheckpoint) -> Row:
    frame = tuple(record["frame"])
    verdict = judge(finding.score, finding.map_HW, detector.calibration, checkpoint.target_fpr, frame)
    of_record = {name: record[name] for name in ("width", "height", "frame")}
    return {**asdict(verdict), **of_record, "checkpoint": checkpoint.version}


@lru_cache(maxsize=4)
def _planned(output: str, storage_options_json: str, shard: str) -> tuple[Plan, ShardIndex]:
    """The plan and one shard's records, read once a process for the many chunks of a shard."""
    storage = Storage(output, json.loads(storage_options_json))
    return read_plan(storage), read_planned_index(storage, shard)


def _decoded(plan: Plan, key: str, content: bytes | StorageError) -> tuple[Row, bytes]:
    """The record of a chunk and its pixels, empty where it has an error."""
    category = None
    try:
        if isinstance(content, StorageError):
            raise content
        category = plan.category_of(key)
        image = prepare(content, plan.checkpoints[category].input)
    except (ImageError, DataError, StorageError) as error:
        return _failed(key, category, str(error)), b""
    record = {
        "key": key,
        "category": category,
        "error": None,
        "width": image.width,
        "height": image.height,
        "frame": list(image.frame),
        "shape": list(image.pixels_3HW.shape[1:]),
    }
    return record, image.pixels_3HW.numpy().tobytes()


def _failed(key: str, category: str | None, error: str) -> Row:
    return {
        "key": key,
        "category": category,
        "error": error,
        "width": None,
        "height": None,
        "frame": None,
        "shape": [0, 0],
    }


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
