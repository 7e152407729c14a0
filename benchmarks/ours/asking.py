"""Clients that post images to a server, each the next as soon as it has its answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.meter import answer, latencies


def measure(
    paths: list[str],
    files: list[str],
    clients: int,
    seconds: float,
    server: dict[str, Any],
    form: str | None = None,
) -> dict[str, Any]:
    """Latencies in ms and images a second after a third of the time, in which everything warms up.

    `server` are its `base_url` and the `headers` that it wants. Bodies are bare images to the paths in turn or, with
    `form`, forms to that path with `paths` as their category.
    """
    images = [Path(file).read_bytes() for file in files]
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    client = httpx.AsyncClient(timeout=60, limits=limits, **server)
    return asyncio.run(_measured(client, paths, images, clients, seconds, form))


async def _measured(
    client: httpx.AsyncClient,
    paths: list[str],
    images: list[bytes],
    clients: int,
    seconds: float,
    form: str | None,
) -> dict[str, Any]:
    work = itertools.cycle((paths[n % len(paths)], images[n % len(images)]) for n in range(len(paths) * len(images)))
    taken: list[float] = []
    async with client:
        begin = time.perf_counter() + seconds / 3
        end = begin + seconds

        async def ask() -> None:
            while (start := time.perf_counter()) < end:
                path, image = next(work)
                reply = await (
                    client.post(path, content=image, headers={"Content-Type": "application/octet-stream"})
                    if form is None
                    else client.post(form, data={"category": path}, files={"image": ("0.png", image)})
                )
                reply.raise_for_status()
                if start >= begin:
                    taken.append(time.perf_counter() - start)

        await asyncio.gather(*(ask() for _ in range(clients)))
        wall = time.perf_counter() - begin
    return {"answers": len(taken), "images_per_second": round(len(taken) / wall, 3), **latencies(taken)}


if __name__ == "__main__":
    answer(measure)
