"""`pack`: the plan's missing shards, each one Ray Data task, or in this process where there is nothing to share out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import ray
import ray.data
from ray.data import TaskPoolStrategy

from cflow_ray.config import PackConfig, Range
from cflow_ray.data.pack_plan import PlannedShard, plan_pack
from cflow_ray.data.packing import Packed, ShardWriter, begin, finish
from cflow_ray.errors import StorageError
from cflow_ray.score.context import job_context
from cflow_ray.store.storage import Storage


def pack(config: PackConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> Packed:
    """Write the images into `<output>/<name>-<number>.tar` with an index beside each, then a manifest of all.

    The same images give the same shards, whatever the workers; each worker holds one shard in memory. A second call
    with the same settings writes only what is missing. `progress` gets packed and all images. Raises DataError where
    nothing is to be packed, ConfigError where the output holds another pack, StorageError where an image cannot be read.
    """
    plan = plan_pack(config)
    output = Storage(config.output, config.storage_options)
    rest = begin(plan, config, output)
    done = plan.records - sum(len(shard.records) for shard in rest)
    progress(done, plan.records)
    writer = ShardWriter(plan.roots, config)
    alone = len(rest) <= 1 or config.cluster.workers == Range(max=1)
    for records in map(writer.write, rest) if alone else _in_parallel(rest, writer, config):
        done += records
        progress(done, plan.records)
    return finish(plan, output, len(plan.shards) - len(rest))


def _in_parallel(shards: Sequence[PlannedShard], writer: ShardWriter, config: PackConfig) -> Iterator[int]:
    ray.init(**config.cluster.init_arguments())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = config.cluster.worker_count(nodes, len(shards))
    job_context()
    rows = [{"shard": shard.to_json()} for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        writer.__call__, num_cpus=config.cluster.resources.cpu, compute=TaskPoolStrategy(size=workers)
    )
    for row in dataset.iter_rows():
        if row["error"] is not None:
            raise StorageError(row["error"])
        yield row["records"]
