"""`make bench-serve`: our server against its own parts in one process, against LitServe and against anomalib in FastAPI."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.listening import listening
from benchmarks.options import parse, parser
from benchmarks.prepared import Prepared, copy_category, prepare
from benchmarks.report import publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side

_CATEGORIES = 5
_CLIENTS = 16
_BATCH = 16
_HOT = 20


def main() -> None:
    """Each side in turn, every round; then a server of many categories, most of them cold."""
    options = parse(_flags())
    if options.quick:
        options.seconds, options.registered = 3, 25
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), options)
        registry, category = Path(prepared.scoring["registry"]), prepared.images.category
        names = [category, *(f"{category}-{number:03d}" for number in range(1, options.registered))]
        for name in names[1:_CATEGORIES]:
            copy_category(registry, category, name)
        rounds = [_round(prepared, names[:_CATEGORIES], options) for _ in range(options.rounds)]
        for name in names[_CATEGORIES:]:
            copy_category(registry, category, name)
        cold = _cold(prepared, names, options)
    publish(_result(rounds, cold, prepared.images.source, options), options, {"rounds": rounds, "cold": cold})


def _flags() -> ArgumentParser:
    flags = parser("serve images over HTTP")
    flags.set_defaults(threads=os.cpu_count(), rounds=3)
    flags.add_argument("--seconds", type=float, default=15, help="of every measurement, after a third as much")
    flags.add_argument("--registered", type=int, default=300, help="categories of the registry with cold ones")
    flags.add_argument("--capacity-mb", type=int, default=2048, help="of its detectors in memory")
    return flags


def _round(prepared: Prepared, names: list[str], options: Namespace) -> dict[str, Any]:
    files = [str(prepared.images.root / file) for file in prepared.shared["files"]]
    scoring = {"registry": prepared.scoring["registry"], "runtime": options.runtime}
    asking = {"files": files, "seconds": options.seconds}
    routes = [f"/v1/score/{name}" for name in names]
    parts = run_side(OURS, "ours.in_process", options.threads, batch=_BATCH, cores=options.threads, **scoring, **asking)
    with _ours(prepared, options) as url:
        one = run_side(OURS, "ours.asking", 1, url=url, paths=routes, clients=1, **asking)
        before = _metrics(url)
        many = run_side(OURS, "ours.asking", 1, url=url, paths=routes, clients=_CLIENTS, **asking)
        batches = {name: value - before[name] for name, value in _metrics(url).items()}
        many["mean_batch"] = round(batches["cflow_ray_batch_images_sum"] / batches["cflow_ray_batch_images_count"], 2)
    with listening(OURS, "ours.lit", options.threads, batch_size=_BATCH, cores=options.threads, **scoring) as url:
        lit = run_side(OURS, "ours.asking", 1, url=url, paths=names, clients=_CLIENTS, form="/predict", **asking)
    with listening(ANOMALIB, "peer.serving", options.threads, encoder=prepared.encoder, cores=options.threads) as url:
        peer = run_side(OURS, "ours.asking", 1, url=url, paths=["/score"], clients=_CLIENTS, **asking)
    return {"in_process": parts, "one_client": one, "many_clients": many, "litserve": lit, "anomalib": peer}


def _ours(prepared: Prepared, options: Namespace, **settings: Any) -> Any:
    config = {"registry": prepared.scoring["registry"], "runtime": options.runtime, "port": 0, "batch_size": _BATCH}
    cluster = {"resources": {"cpu": options.threads}}
    return listening(OURS, "ours.serving", options.threads, **config, cluster=cluster, **settings)


def _metrics(url: str) -> dict[str, float]:
    """The samples of this replica without categories, by name."""
    samples = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and name.count("=") == 1:
            samples[name.partition("{")[0]] = float(value)
    return samples


def _cold(prepared: Prepared, names: list[str], options: Namespace) -> dict[str, Any]:
    """First answers of cold categories beside hot ones, and the memory of detectors, with room for the hot ones."""
    image = (prepared.images.root / prepared.shared["files"][0]).read_bytes()

    def ask(client: httpx.Client, name: str) -> float:
        start = time.perf_counter()
        client.post(f"/v1/score/{name}", content=image).raise_for_status()
        return time.perf_counter() - start

    with (
        _ours(prepared, options, capacity_mb=options.capacity_mb) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        hot = names[:_HOT]
        for name in hot:
            ask(client, name)
        usual = statistics.median(ask(client, name) for name in hot)
        firsts, largest = [], 0.0
        for name in names[_HOT:]:
            firsts.append(ask(client, name))
            largest = max(largest, _metrics(url)["cflow_ray_detector_bytes"])
        loaded = _metrics(url)["cflow_ray_detectors_loaded"]
    return {
        "registered": len(names),
        "hot_ms": round(1000 * usual, 1),
        "first_median_ms": round(1000 * statistics.median(firsts), 1),
        "first_largest_ms": round(1000 * max(firsts), 1),
        "capacity_mb": options.capacity_mb,
        "largest_mb": round(largest / 2**20, 1),
        "loaded": loaded,
        "file_read_ms": round(1000 * _read_seconds(Path(prepared.scoring["registry"]) / names[-1]), 2),
    }


def _read_seconds(category: Path) -> float:
    start = time.perf_counter()
    for file in category.rglob("*"):
        if file.is_file():
            file.read_bytes()
    return time.perf_counter() - start


def _result(rounds: list[dict[str, Any]], cold: dict[str, Any], source: str, options: Namespace) -> dict[str, Any]:
    def middle(side: str, figure: str) -> float:
        return statistics.median(one[side][figure] for one in rounds)

    rate = middle("many_clients", "images_per_second")
    ratios = {
        side: significant(rate / middle(side, "images_per_second")) for side in ("in_process", "litserve", "anomalib")
    }
    return {
        "name": "serve",
        "ours": rate,
        "peer": middle("anomalib", "images_per_second"),
        "ratio": ratios["anomalib"],
        "unit": "images/s",
        "conditions": {
            "ours": f"serve, {_CLIENTS} clients, {_CATEGORIES} categories, one replica of {options.threads} processors",
            "peer": f"FastAPI around anomalib's TorchInferencer, {_CLIENTS} clients, {options.threads} threads",
            "ratio_to_decode_and_bank_in_process": ratios["in_process"],
            "ratio_to_litserve": ratios["litserve"],
            "one_client_p50_ratio": significant(middle("one_client", "p50_ms") / middle("in_process", "p50_ms")),
            "one_client_p99_ratio": significant(middle("one_client", "p99_ms") / middle("in_process", "p99_ms")),
            "one_client_p50_ms": middle("one_client", "p50_ms"),
            "one_client_p99_ms": middle("one_client", "p99_ms"),
            "many_clients_p50_ms": middle("many_clients", "p50_ms"),
            "many_clients_p99_ms": middle("many_clients", "p99_ms"),
            "mean_batch": middle("many_clients", "mean_batch"),
            "cold": cold,
            "batch": _BATCH,
            "runtime": options.runtime,
            "data": source,
        },
    }


if __name__ == "__main__":
    main()
