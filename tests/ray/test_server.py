"""The server on Ray Serve, through its proxy, and from the command line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import tenacity

from cflow_ray.config import ServeConfig
from cflow_ray.errors import CheckpointError, ServingError
from cflow_ray.serve import Server
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.serving import kind_of
from tests.versions import copy_version

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

soon = tenacity.retry(
    stop=tenacity.stop_after_delay(20),
    wait=tenacity.wait_fixed(0.2),
    retry=tenacity.retry_if_exception_type(AssertionError),
)


@pytest.fixture(scope="module")
def own_registry(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be changed, with a second version of brick that is not promoted."""
    root = tmp_path_factory.mktemp("served") / "registry"
    shutil.copytree(registry, root)
    opened = Registry(Storage(str(root)))
    first = opened.best("brick")
    copy_version(root, f"brick/{first}", "brick/v2-abcdef")
    return root


@pytest.fixture(scope="module")
def client(own_registry: Path) -> Iterator[httpx.Client]:
    config = ServeConfig(registry=str(own_registry), port=0, reload_seconds=0.3, max_body_mb=0.1, body_seconds=2)
    with Server(config) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def image(miniature: Path) -> bytes:
    return (miniature / "brick/test/crack/000.png").read_bytes()


def test_an_image_gets_its_verdict(client: httpx.Client, image: bytes):
    answer = client.post("/v1/score/brick", content=image)
    assert answer.status_code == 200, answer.text
    verdict = answer.json()
    assert verdict.keys() >= {"score", "p_value", "is_anomaly", "threshold", "checkpoint", "width", "height", "regions"}
    assert (verdict["width"], verdict["height"]) == (96, 96)
    assert verdict["is_anomaly"] == (verdict["score"] > verdict["threshold"])
    for region in verdict["regions"]:
        left, top, right, bottom = region["box"]
        assert 0 <= left < right <= 96
        assert 0 <= top < bottom <= 96
        assert region["peak"] > verdict["threshold"]


def test_through_ray_s_proxy_refusals_keep_their_form(client: httpx.Client, image: bytes):
    refused = client.post("/v1/score/zippr", content=image, headers={"X-Request-Id": "r-1"})
    assert kind_of(refused) == "unknown-category"
    assert refused.headers["x-request-id"] == "r-1"
    assert kind_of(client.post("/v1/score/brick", content=bytes(200_000))) == "too-large"
    assert kind_of(client.get("/v1/nothing")) == "not-found"


def test_a_body_that_stays_half_sent_is_given_up(client: httpx.Client, image: bytes):
    """On bare sockets, beside which others are answered."""
    head = f"POST /v1/score/brick HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    with ExitStack() as stack:
        halves = []
        for _ in range(8):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", client.base_url.port), timeout=60))
            half.sendall(head + image[:100])
            halves.append(half)
        assert client.post("/v1/score/brick", content=image).status_code == 200
        for half in halves:
            assert half.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=60) as broken:
        broken.sendall(head + image[:100])
    assert client.post("/v1/score/brick", content=image).status_code == 200


def test_a_moved_pointer_is_taken_over(client: httpx.Client, own_registry: Path, image: bytes):
    registry = Registry(Storage(str(own_registry)))
    first = registry.best("brick")

    @soon
    def served(version: str) -> None:
        assert client.post("/v1/score/brick", content=image).json()["checkpoint"] == version

    served(first)
    registry.promote("brick", "v2")
    served("v2-abcdef")
    registry.rollback("brick")
    served(first)


def test_metrics_name_the_replica(client: httpx.Client, image: bytes):
    assert client.post("/v1/score/brick", content=image).status_code == 200
    text = client.get("/metrics").text
    [images] = [line for line in text.splitlines() if line.startswith("cflow_ray_images_total")]
    assert re.fullmatch(r'cflow_ray_images_total\{category="brick",replica="\w+"\} \d+\.0', images)


def test_a_registry_without_checkpoint_and_a_taken_port_are_told(tmp_path: Path, registry: Path, client: httpx.Client):
    Registry.create(Storage(str(tmp_path)))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Server(ServeConfig(registry=str(tmp_path), port=0))
    with pytest.raises(ServingError, match="--port"):
        Server(ServeConfig(registry=str(registry), port=client.base_url.port))


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(registry: Path, image: bytes, told: signal.Signals):
    command = [
        str(Path(sys.executable).with_name("cflow-ray")),
        "serve",
        "--registry",
        str(registry),
        "--port",
        "0",
        "--json",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        assert httpx.post(f"{url}/v1/score/brick", content=image, timeout=60).status_code == 200
        server.send_signal(told)
        assert server.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")
    finally:
        server.kill()
