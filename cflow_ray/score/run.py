"""One scoring job: the plan's unfinished chunks through a Ray Data pipeline, then the summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from cflow_ray.config import ScoreConfig
from cflow_ray.model.extras import check_runtime
from cflow_ray.score.context import job_context, own_error
from cflow_ray.score.job import Job
from cflow_ray.score.plan import Span, plan_job
from cflow_ray.score.stages import ReadSpan, ScoreChunk
from cflow_ray.score.summary import JobSummary, Totals
from cflow_ray.store.storage import Storage

_READ_CPUS = 0.25  # unlike the request of actors, or Ray Data would fuse reading into the scoring actor
_ACTOR_SHARE = 0.75  # of the processors of a worker; what is left on a node of one processor is room to read
_BLOCK_BYTES = 2**20  # a decoded chunk is larger, so that it leaves its task as a block of its own


def score(config: ScoreConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> JobSummary:
    """Score the inputs into `output`; a second call with the same settings does only what is not finished.

    `progress` gets finished and all known chunks. Raises a CflowRayError before anything is scored where inputs,
    registry or output cannot be used; an image that cannot be scored is a row with `error`.
    """
    start = time.monotonic()
    check_runtime(config.runtime)
    results = Storage(config.output, config.storage_options)
    job = Job.of(plan_job(config, results), results, config, start)
    rest = job.rest
    progress(rest.done, rest.chunks)
    if rest.shards:
        ray.init(**config.cluster.init_arguments())
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # Ray Data adds no actor without room: one that died would wait for its place behind those that have none yet.
        actors = config.cluster.pool(nodes, max(rest.due, config.cluster.room(nodes) if rest.is_open else 0))
        divided_among = actors[0] if config.cluster.workers == "auto" else actors[1]
        dataset = pipeline(rest.spans(divided_among), config, job.plan.id, actors)
        _run(dataset, job.run, lambda finished: progress(rest.done + finished, rest.chunks))
    return job.finish()


def pipeline(
    spans: Sequence[Span],
    config: ScoreConfig,
    plan_id: str,
    actors: tuple[int, int],
    reader: type = ReadSpan,
    scorer: type = ScoreChunk,
) -> Dataset:
    """Spans -> tasks that read and decode -> actors, so many at first and at most, that score and write.

    One row and one block a chunk. `reader` and `scorer` are made of the configuration and the plan's id.
    """
    job_context().target_max_block_size = _BLOCK_BYTES
    dataset = ray.data.from_items([{"span": span.to_json()} for span in spans], override_num_blocks=len(spans))
    read = reader(config, plan_id)
    (first, most), of_actor = actors, config.cluster.resources
    return dataset.flat_map(read.__call__, num_cpus=_READ_CPUS).map(
        scorer,
        fn_constructor_args=(config, plan_id),
        compute=ActorPoolStrategy(min_size=first, max_size=most),
        **of_actor.as_options() | {"num_cpus": _ACTOR_SHARE * of_actor.cpu},
    )


def _run(dataset: Dataset, totals: Totals, progress: Callable[[int], None]) -> None:
    try:
        for row in dataset.iter_rows():
            totals.add_chunk(row)
            progress(totals.chunks)
    except ray.exceptions.RayTaskError as error:
        expected = own_error(error)
        if expected is None:
            raise
        raise expected from error
