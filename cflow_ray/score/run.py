"""One scoring job: the plan's unfinished chunks through a Ray Data pipeline, then the summary."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from cflow_ray.config import ScoreConfig
from cflow_ray.errors import CflowRayError
from cflow_ray.model.runtime import check_runtime
from cflow_ray.score.plan import Chunk, plan_job
from cflow_ray.score.stages import ReadChunk, ScoreChunk
from cflow_ray.store.checkpoint import installed_packages
from cflow_ray.store.results import finished_parts
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

_SUMMARY = "_summary.json"
_SUCCESS = "_SUCCESS"
_READ_CPUS = 0.5  # unlike the actors' request, or Ray Data would fuse reading into the scoring actor
_ACTOR_SHARE = 0.75  # of a worker's processors; the rest is left to reading
_CAPACITY_BYTES = 2 * 2**30


@dataclass
class JobSummary:
    """What a run of the job did; `rows` and `errors` are of the chunks that this run finished."""

    output: str
    chunks: int = 0
    chunks_already_done: int = 0
    rows: int = 0
    errors: int = 0
    anomalies: int = 0
    seconds: float = 0.0
    read_seconds: float = 0.0
    score_seconds: float = 0.0
    images_per_second: float = 0.0


def score(config: ScoreConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> JobSummary:
    """Score the inputs into `output`; a second call with the same settings does only what is not finished.

    `progress` gets finished and all chunks. Raises a CflowRayError before anything is scored where inputs, registry or
    output cannot be used; an image that cannot be scored is a row with `error`.
    """
    start = time.monotonic()
    check_runtime(config.runtime)
    results = Storage(config.output, config.storage_options)
    plan = plan_job(config, results)
    done = finished_parts(results)
    chunks = list(plan.chunks())
    pending = [chunk for chunk in chunks if chunk.part not in done]
    summary = JobSummary(config.output, chunks=len(chunks), chunks_already_done=len(chunks) - len(pending))
    progress(summary.chunks_already_done, len(chunks))
    if pending:
        ray.init(**config.cluster.init_arguments())
        _run(pipeline(pending, config), summary, progress)
    summary.seconds = time.monotonic() - start
    summary.images_per_second = summary.rows / summary.seconds
    _finish(results, summary, {category: checkpoint.version for category, checkpoint in plan.checkpoints.items()})
    return summary


def pipeline(pending: list[Chunk], config: ScoreConfig) -> Dataset:
    """Chunks -> tasks that read and decode -> actors that score and write; one row and one block a chunk."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for noisy in ("ray.data", "ray._private.authentication"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = config.cluster.worker_count(nodes, len(pending))
    rows = [asdict(chunk) for chunk in pending]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    read = ReadChunk(config.output, config.storage_options)
    return dataset.map(read.__call__, num_cpus=_READ_CPUS).map(
        ScoreChunk,
        fn_constructor_args=(config.output, config.storage_options, config.batch_size, _CAPACITY_BYTES, config.runtime),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=_ACTOR_SHARE * config.cluster.resources.cpu,
    )


def _run(dataset: Dataset, summary: JobSummary, progress: Callable[[int, int], None]) -> None:
    finished = summary.chunks_already_done
    try:
        for row in dataset.iter_rows():
            finished += 1
            for name in ("rows", "errors", "anomalies", "read_seconds", "score_seconds"):
                setattr(summary, name, getattr(summary, name) + row[name])
            progress(finished, summary.chunks)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CflowRayError):
            raise cause from error
        raise


def _finish(results: Storage, summary: JobSummary, checkpoints: Mapping[str, str]) -> None:
    content: dict[str, Any] = {**asdict(summary), "checkpoints": dict(checkpoints), "packages": installed_packages()}
    results.write(_SUMMARY, json.dumps(content, indent=2).encode())
    results.write(_SUCCESS, b"")
