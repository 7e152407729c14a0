"""`make bench-archive`: an archive job from tar shards in an object store, against a plain loop and against anomalib."""

from __future__ import annotations

import os
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from benchmarks.images import repeat
from benchmarks.options import parse, parser
from benchmarks.prepared import Prepared, prepare
from benchmarks.report import publish, significant
from benchmarks.servers import object_store
from benchmarks.sides import ANOMALIB, OURS, run_side
from cflow_ray.data.archives import write_shards
from cflow_ray.store.storage import Storage
from tests.stores import Place

_BATCH = 16
_SHARD = 64 * 10**6


def main() -> None:
    """Pack the images into the store, then the job, the loop and the peer in turn."""
    options = parse(_flags())
    images, for_peer = (200, 8) if options.quick else (options.images, options.images_of_the_peer)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepared = prepare(work, options)
        names = repeat(prepared.images, work / "images", images)
        repeat(prepared.images, work / "few", for_peer)
        with object_store(work) as (server, place):
            _upload(work / "images", names, prepared.images.category, place)
            job = run_side(OURS, "ours.archiving", 1, config=_config(prepared, place, options))
        plain = run_side(
            *(OURS, "ours.plain", 1),
            **{"root": str(work / "images"), "files": names, "batch": _BATCH, "scoring": prepared.scoring},
            processes=options.workers,
        )
        settings = {"folder": str(work / "few"), "encoder": prepared.encoder, "device": options.device}
        peer = run_side(ANOMALIB, "peer.folder", options.workers, **settings)
    result = _result(job, plain, peer, options, f"{prepared.images.source}, tars in {server}")
    publish(result, options, {"job": job, "plain": plain, "peer": peer})


def _flags() -> ArgumentParser:
    flags = parser("score an archive of tar shards in an object store", rounds=0)
    flags.add_argument("--images", type=int, default=5000, help="in the archive, the test images over and over")
    flags.add_argument("--images-of-the-peer", type=int, default=300, help="that anomalib predicts")
    flags.add_argument("--workers", type=int, default=os.cpu_count(), help="of each side: actors, processes, threads")
    return flags


def _upload(folder: Path, names: list[str], category: str, place: Place) -> None:
    records = ((f"{category}/{name}", (folder / name).read_bytes()) for name in names)
    write_shards(records, Storage(f"{place.root}/in", place.options), "night", _SHARD)


def _config(prepared: Prepared, place: Place, options: Namespace) -> dict[str, Any]:
    return {
        "inputs": [f"{place.root}/in"],
        "output": f"{place.root}/out",
        "registry": prepared.scoring["registry"],
        "runtime": options.runtime,
        "batch_size": _BATCH,
        "storage_options": place.options,
        "cluster": {"workers": options.workers},
    }


def _result(
    job: dict[str, Any], plain: dict[str, Any], peer: dict[str, Any], options: Namespace, data: str
) -> dict[str, Any]:
    rate, peers = job["images_per_second"], peer["images"] / peer["wall"]
    return {
        "name": "archive",
        "ours": rate,
        "peer": significant(peers),
        "ratio": significant(rate / peers),
        "unit": "images/s",
        "conditions": {
            "ours": f"score, {options.workers} actors, from the first finished chunk on",
            "peer": f"anomalib Engine.predict(data_path=folder), pictures off, {options.workers} torch threads",
            "plain": f"{options.workers} processes that decode and score local files, nothing written",
            "plain_images_per_second": plain["images_per_second"],
            "ratio_to_plain": significant(rate / plain["images_per_second"]),
            "ratio_to_plain_with_start_up": significant(job["rows"] / job["wall"] / plain["images_per_second"]),
            "seconds_to_the_first_chunk": job["first_chunk"],
            "wall_s": job["wall"],
            "images": job["rows"],
            "images_of_the_peer": peer["images"],
            "data": data,
            "runtime": options.runtime,
        },
    }


if __name__ == "__main__":
    main()
