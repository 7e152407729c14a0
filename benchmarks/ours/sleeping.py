"""Stages of a scoring job that sleep where the real ones read, decode and score; what they write is real.

Without torch, so that many of them fit one machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from cflow_ray.config import ScoreConfig
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage

STEP = "CFLOW_BENCHMARK_STEP"
"""Environment variable with the seconds that a scorer takes for a chunk."""


class NamingReader:
    """Yields the chunks of a span without pixels."""

    def __init__(self, config: ScoreConfig, plan_id: str) -> None:
        self._records = config.chunk_records

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """From {span} to chunks: the shard, the first record and the records' keys."""
        shard, firsts, _ = json.loads(row["span"])
        for first in firsts:
            keys = [f"screw/{number:09d}.png" for number in range(first, first + self._records)]
            yield {"shard": shard, "first": first, "keys": keys}


class SleepingScorer:
    """Sleeps for a chunk's time, then writes its part."""

    def __init__(self, config: ScoreConfig, plan_id: str) -> None:
        self._results = Storage(config.output, config.storage_options)
        self._step = float(os.environ[STEP])

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """From a chunk to which process wrote its part, and when."""
        time.sleep(self._step)
        rows = [_row(chunk["shard"], key) for key in chunk["keys"]]
        write_part(self._results, PartName(chunk["shard"], chunk["first"]), rows, {})
        return {"worker": os.getpid(), "ended": time.time()}


def _row(shard: str, key: str) -> dict[str, Any]:
    verdict = {"score": 0.25, "p_value": 0.5, "is_anomaly": False, "threshold": 0.5, "checkpoint": "v1"}
    of_image = {"key": key, "image_id": f"{shard}/{key}", "category": "screw", "width": 256, "height": 256}
    return {**of_image, **verdict, "frame": [0, 0, 256, 256], "regions": []}
