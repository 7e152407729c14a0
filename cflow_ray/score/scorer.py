"""What a scoring actor does with a decoded chunk: findings, verdicts, maps, and the part of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from cflow_ray.config import ScoreConfig
from cflow_ray.data.images import encode_map
from cflow_ray.errors import CflowRayError
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.device import prepared_device
from cflow_ray.model.verdict import judge
from cflow_ray.score.pace import BatchSize
from cflow_ray.score.plan import PlannedCheckpoint, read_own_plan
from cflow_ray.score.rows import Row, count_rows, image_id
from cflow_ray.store.registry import CheckpointKey, Registry
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage

_CAPACITY_BYTES = 2 * 2**30  # for the detectors of an actor


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

    def _score(self, images: Sequence[NDArray[np.uint8]], records: Sequence[Row]) -> list[Finding]:
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


def _unpack(chunk: Row) -> dict[int, NDArray[np.uint8]]:
    """The images (3, H, W) of a chunk by the number of their record."""
    flat = np.frombuffer(chunk["pixels"], dtype=np.uint8).copy()  # torch wants to be able to write
    images, at = {}, 0
    for number, record in enumerate(chunk["records"]):
        if record["error"] is None:
            height, width = record["shape"]
            length = 3 * height * width
            images[number] = flat[at : at + length].reshape(3, height, width)
            at += length
    return images
