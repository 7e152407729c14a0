"""`make bench-scaling`: what scheduling a scoring job costs, from the plan of a million chunks to 64 workers at work."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from benchmarks.options import parse, parser
from benchmarks.references import Night
from benchmarks.report import publish, significant
from benchmarks.sides import OURS, run_side

_SIDE = 64
_RECORDS = 64  # of a chunk
_PAPER_FPS = 27  # of CFLOW with WRN50 at 256 px on a GTX 1080, table 4 of the paper
_BILLION = 10**9


def main() -> None:
    """Workers that sleep the time of a chunk, more and more of them; then as many chunks a second as go; then the plan."""
    options = parse(_flags())
    if options.quick:
        options.workers, options.step, options.each, options.plan_chunks = [1, 2], 0.2, 4, 200
    steps = [_scheduled(workers, options.step, workers * options.each) for workers in options.workers]
    ceiling = _scheduled(options.ceiling_workers, 0.0, 40 * options.ceiling_workers * options.each)
    plan = _plan(options)
    publish(_result(steps, ceiling, plan, options), options, {"steps": steps, "ceiling": ceiling, "plan": plan})


def _flags() -> ArgumentParser:
    flags = parser("scheduling of a scoring job", rounds=0)
    flags.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 64], help="that sleep, ascending")
    flags.add_argument("--step", type=float, default=_RECORDS / _PAPER_FPS, help="seconds of a chunk of 64 images")
    flags.add_argument("--each", type=int, default=20, help="chunks of every worker")
    flags.add_argument("--ceiling-workers", type=int, default=2, help="workers that do not sleep, for chunks a second")
    flags.add_argument("--plan-chunks", type=int, default=1_000_000, help="chunks of the plan, half of them finished")
    return flags


def _scheduled(workers: int, step: float, chunks: int) -> dict[str, Any]:
    return run_side(OURS, "ours.scheduling", 1, workers=workers, step=step, chunks=chunks)


def _plan(options: Namespace) -> dict[str, Any]:
    """A plan of chunks of one record each, so that few indexes are enough for many chunks."""
    with tempfile.TemporaryDirectory() as folder:
        config = Night.prepare(Path(folder), blobs=10, side=_SIDE).job(options.plan_chunks) | {"chunk_records": 1}
        settings = {"finished": options.plan_chunks // 2, "workers": max(options.workers)}
        return run_side(OURS, "ours.planning", 1, config=config, **settings)


def _result(
    steps: list[dict[str, Any]], ceiling: dict[str, Any], plan: dict[str, Any], options: Namespace
) -> dict[str, Any]:
    most = steps[-1]
    hours = _BILLION / _RECORDS / ceiling["chunks_per_second"] / 3600
    return {
        "name": "scaling",
        "ours": most["efficiency"],
        "peer": None,
        "ratio": significant(most["efficiency"] / steps[0]["efficiency"]),
        "unit": f"of the time of {most['workers']} workers spent scoring",
        "conditions": {
            "ours": f"{most['workers']} workers that sleep {options.step:.3g} s a chunk of {_RECORDS}, {options.each} each",
            "ratio": f"to {steps[0]['workers']} worker",
            "efficiency": {str(step["workers"]): step["efficiency"] for step in steps},
            "start_up_s": {str(step["workers"]): step["start_up"] for step in steps},
            "driver_peak_mb": {str(step["workers"]): step["driver_peak_mb"] for step in steps},
            "chunks_per_second_at_most": ceiling["chunks_per_second"],
            "hours_for_a_billion_images_at_most_speed": significant(hours, 3),
            "plan": {name: plan[name] for name in ("chunks", "due", "plan_s", "rerun_s", "driver_peak_mb")},
        },
    }


if __name__ == "__main__":
    main()
