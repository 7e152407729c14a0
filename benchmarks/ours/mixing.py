"""Our scoring actor on chunks of mixed and of sorted categories."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.meter import Meter, answer
from cflow_ray.config import ScoreConfig
from cflow_ray.data.archives import write_shards
from cflow_ray.score.plan import plan_job
from cflow_ray.score.spans import pending
from cflow_ray.score.stages import ReadSpan, ScoreChunk
from cflow_ray.store.results import finished_parts
from cflow_ray.store.storage import Storage


def measure(root: str, rounds: int, chunks: int, job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds that the actor takes for all chunks, in either order, in turn; reading and decoding do not count."""
    by_category = [sorted(folder.glob("test/*/*.png")) for folder in sorted(Path(root).iterdir())]
    alternating = list(
        islice(cycle(chain.from_iterable(zip(*by_category, strict=True))), job["chunk_records"] * chunks)
    )
    orders = {"mixed": alternating, "sorted": sorted(alternating, key=lambda path: path.parts[-4])}
    with tempfile.TemporaryDirectory() as folder:
        ready = {}
        for name, paths in orders.items():
            ready[name] = _decoded_and_actor(_packed(Path(folder) / name, root, paths, job))
        seconds: dict[str, list[float]] = {name: [] for name in orders}
        for turn in range(rounds + 1):
            for name, (decoded, actor) in ready.items():
                with Meter() as meter:
                    for row in decoded:
                        actor(row)
                if turn:  # the first loads detectors and compiles graphs
                    seconds[name].append(round(meter.cpu, 3))
    return {"images": len(alternating), **seconds}


def _packed(work: Path, root: str, paths: Sequence[Path], job: dict[str, Any]) -> ScoreConfig:
    records = (
        (f"{path.relative_to(root).parts[0]}/{number:05d}.png", path.read_bytes()) for number, path in enumerate(paths)
    )
    write_shards(records, Storage(str(work / "in")), "night", 2**40)
    return ScoreConfig(inputs=(str(work / "in"),), output=str(work / "out"), **job)


def _decoded_and_actor(config: ScoreConfig) -> tuple[list[dict[str, Any]], ScoreChunk]:
    output = Storage(config.output)
    plan = plan_job(config, output)
    (span,) = pending(plan, finished_parts(output), frozenset(), output).shards
    decoded = list(ReadSpan(config, plan.id)({"span": span.to_json()}))
    return decoded, ScoreChunk(config, plan.id)


if __name__ == "__main__":
    answer(measure)
