"""A registry of cheap detectors that can score, and a server over it without Ray."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import Request, Response
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig, ServeConfig
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.initialisation import start_whitened
from cflow_ray.model.scoring import Calibration
from cflow_ray.serve.api import build_api
from cflow_ray.serve.service import ScoringService
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from tests.stores import free_port

ENCODER = EncoderConfig(strides=(8, 16))
FLOW = FlowConfig(blocks=2, condition_channels=8)
CALIBRATION = tuple(np.linspace(0.1, 0.8, 39))


def add_version(registry: Registry, category: str, state: dict[str, Tensor], normals: Tensor, seed: int) -> str:
    """A version that is the Gaussian of some images' features: cheap, and another for every seed. Not promoted.

    Categories whose name is longer have a larger input, so that a batch has more than one pass.
    """
    side = 64 if len(category) == 3 else 96
    encoder, generator = Encoder(ENCODER, state), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(normals), generator=generator)[:6]
    resized = functional.interpolate(normals[chosen].float(), (side, side), mode="bilinear").round().byte()
    with torch.no_grad():
        pyramid = encoder(resized)
    decoders = []
    for level in pyramid:
        decoder = Decoder(level.shape[1], FLOW, generator)
        start_whitened(decoder, level.permute(0, 2, 3, 1).flatten(0, 2))
        decoders.append(decoder)
    config = DetectorConfig(encoder=ENCODER, flow=FLOW, input_size=side)
    peaks = tuple(
        float(FoldedDecoder.of(decoder)(level).max()) for decoder, level in zip(decoders, pyramid, strict=True)
    )
    digest = registry.add_encoder(state)

    def manifest(version: str) -> Manifest:
        return Manifest(
            category=category,
            version=version,
            detector=config,
            encoder_digest=digest,
            channels=tuple(level.shape[1] for level in pyramid),
            peaks=peaks,
            calibration_scores=CALIBRATION,
        )

    return registry.add(category, Fitted(config, tuple(decoders), Calibration.of(peaks, CALIBRATION)), manifest)


def png(image_3HW: Tensor) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image_3HW.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Served:
    """A service in this process, and a client of its API."""

    service: ScoringService
    client: httpx.AsyncClient


@asynccontextmanager
async def serving(root: Path | str, client: str = "127.0.0.1", **settings: object) -> AsyncIterator[Served]:
    """A server over a registry, asked from an address."""
    config = ServeConfig.model_validate({"registry": str(root), "runtime": "torch", "reload_seconds": 3600, **settings})
    service = ScoringService(config, "first")
    transport = httpx.ASGITransport(build_api(service), client=(client, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as asking:
        yield Served(service, asking)
    await service.close()


@dataclass(frozen=True)
class Site:
    """A server over HTTP, and the paths it was asked for."""

    url: str
    asked: list[str]
    service: ScoringService


@contextmanager
def site(root: Path | str, **settings: object) -> Iterator[Site]:
    """The same over HTTP, from a thread of this process, without Ray."""
    config = ServeConfig.model_validate({"registry": str(root), "runtime": "torch", "reload_seconds": 3600, **settings})
    port, started = free_port(), Future[Site]()
    servers: list[uvicorn.Server] = []

    async def run() -> None:
        service = ScoringService(config, "first")
        api, asked = build_api(service), list[str]()

        @api.middleware("http")
        async def note(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            asked.append(request.url.path)
            return await call_next(request)

        server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning", ws="none"))
        servers.append(server)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            assert not serving.done(), "the server did not start"
            await asyncio.sleep(0.01)
        started.set_result(Site(f"http://127.0.0.1:{port}", asked, service))
        await serving
        await service.close()

    with ThreadPoolExecutor(1, thread_name_prefix="site") as thread:
        running = thread.submit(asyncio.run, run())
        running.add_done_callback(
            lambda ended: started.done() or started.set_exception(ended.exception() or SystemExit())
        )
        try:
            yield started.result()
        finally:
            for server in servers:
                server.should_exit = True
            running.result()


def tokens_file(folder: Path, **roles: str) -> Path:
    """A file that lets in who sends one of these secrets, each with its role."""
    entries = [
        {"name": f"t{number}", "sha256": sha256(secret.encode()).hexdigest(), "role": role}
        for number, (secret, role) in enumerate(roles.items())
    ]
    file = folder / "tokens.yaml"
    file.write_text(json.dumps(entries))  # which is YAML too
    return file


def kind_of(answer: httpx.Response) -> str:
    """The kind of a problem, which must be one of RFC 9457."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    return str(problem["type"].removeprefix("urn:cflow-ray:problem:"))


def files(contents: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """Images as parts of a form."""
    return [("image", (f"{number}.png", content)) for number, content in enumerate(contents)]
