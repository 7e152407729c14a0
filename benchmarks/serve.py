"""`make bench-serve`: our server against its own parts in one process, against LitServe and against anomalib in FastAPI."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from functools import reduce
from pathlib import Path
from typing import Any

import httpx

from benchmarks.listening import listening
from benchmarks.options import parse, parser
from benchmarks.prepared import Prepared, copy_category, prepare
from benchmarks.report import publish, significant
from benchmarks.sides import ANOMALIB, OURS, run_side
from cflow_ray.serve.access import make_token

_CATEGORIES = 5
_CLIENTS = 16
_BATCH = 16
_HOT = 20
_FRONTS = ("haproxy", "ray")
"""What stands before the replica: HAProxy, as Ray starts it where it is told to, or Ray's own proxy."""
_FASTEST = ("haproxy", "many_clients")


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
    flags = parser("serve images over HTTP", rounds=3)
    flags.set_defaults(threads=os.cpu_count())
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
    fronts = {name: _served(prepared, options, routes, asking, name == "haproxy") for name in _FRONTS}
    with listening(OURS, "ours.lit", options.threads, batch_size=_BATCH, cores=options.threads, **scoring) as url:
        lit = run_side(
            OURS, "ours.asking", 1, server={"base_url": url}, paths=names, clients=_CLIENTS, form="/predict", **asking
        )
    with listening(ANOMALIB, "peer.serving", options.threads, encoder=prepared.encoder, cores=options.threads) as url:
        peer = run_side(OURS, "ours.asking", 1, server={"base_url": url}, paths=["/score"], clients=_CLIENTS, **asking)
    return {"in_process": parts, "litserve": lit, "anomalib": peer, **fronts}


def _served(
    prepared: Prepared, options: Namespace, routes: list[str], asking: dict[str, Any], haproxy: bool
) -> dict[str, Any]:
    """One client, then many, of our server behind one of its fronts."""
    secret, token = make_token("clients", "score", None)
    tokens = prepared.images.root.parent / "tokens.yaml"
    tokens.write_text(json.dumps([token.model_dump()]))
    with _ours(prepared, options, haproxy=haproxy, tokens=str(tokens)) as url:
        asked = {"server": {"base_url": url, "headers": _bearer(secret)}, "paths": routes, **asking}
        one = run_side(OURS, "ours.asking", 1, clients=1, **asked)
        before = _metrics(url, secret)
        many = run_side(OURS, "ours.asking", 1, clients=_CLIENTS, **asked)
        batches = {name: value - before[name] for name, value in _metrics(url, secret).items()}
        many["mean_batch"] = round(batches["cflow_ray_batch_images_sum"] / batches["cflow_ray_batch_images_count"], 2)
    return {"one_client": one, "many_clients": many}


def _ours(prepared: Prepared, options: Namespace, **settings: Any) -> Any:
    config = {"registry": prepared.scoring["registry"], "runtime": options.runtime, "port": 0, "batch_size": _BATCH}
    cluster = {"resources": {"cpu": options.threads}}
    return listening(OURS, "ours.serving", options.threads, **config, cluster=cluster, **settings)


def _metrics(url: str, secret: str = "") -> dict[str, float]:
    """The samples of this replica without categories, by name."""
    samples = {}
    for line in httpx.get(f"{url}/metrics", headers=_bearer(secret)).raise_for_status().text.splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and name.count("=") == 1:
            samples[name.partition("{")[0]] = float(value)
    return samples


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def _cold(prepared: Prepared, names: list[str], options: Namespace) -> dict[str, Any]:
    """First answers of cold categories beside hot ones, and the memory of detectors, with room for the hot ones."""
    image = (prepared.images.root / prepared.shared["files"][0]).read_bytes()

    def ask(client: httpx.Client, name: str) -> float:
        start = time.perf_counter()
        client.post(f"/v1/score/{name}", content=image).raise_for_status()
        return time.perf_counter() - start

    with (
        _ours(prepared, options, haproxy=False, capacity_mb=options.capacity_mb) as url,
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
    def middle(figure: str, *side: str) -> float:
        return statistics.median(reduce(lambda found, key: found[key], (*side, figure), one) for one in rounds)

    in_process, rate = middle("images_per_second", "in_process"), middle("images_per_second", *_FASTEST)
    fronts = {
        front: {
            "images_per_second": middle("images_per_second", front, "many_clients"),
            "ratio_to_decode_and_bank_in_process": significant(
                middle("images_per_second", front, "many_clients") / in_process
            ),
            "mean_batch": middle("mean_batch", front, "many_clients"),
            **{
                f"{clients}_{figure}": middle(figure, front, clients)
                for clients in ("one_client", "many_clients")
                for figure in ("p50_ms", "p99_ms")
            },
            **{
                f"one_client_{figure}_ratio": significant(
                    middle(f"{figure}_ms", front, "one_client") / middle(f"{figure}_ms", "in_process")
                )
                for figure in ("p50", "p99")
            },
        }
        for front in _FRONTS
    }
    return {
        "name": "serve",
        "ours": rate,
        "peer": middle("images_per_second", "anomalib"),
        "ratio": significant(rate / middle("images_per_second", "anomalib")),
        "unit": "images/s",
        "conditions": {
            "ours": f"serve behind HAProxy, {_CLIENTS} clients, {_CATEGORIES} categories, {options.threads} processors",
            "peer": f"FastAPI around anomalib's TorchInferencer, {_CLIENTS} clients, {options.threads} threads",
            "in_process_images_per_second": in_process,
            "ratio_to_litserve": significant(rate / middle("images_per_second", "litserve")),
            **fronts,
            "cold": cold,
            "batch": _BATCH,
            "runtime": options.runtime,
            "data": source,
        },
    }


if __name__ == "__main__":
    main()
