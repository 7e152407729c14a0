"""The server: what it answers, what it refuses, how it follows the registry, how it stops."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tenacity

from cflow_ray.config import ServeConfig
from cflow_ray.errors import CheckpointError, ServingError
from cflow_ray.serve import Server
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage

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
    second = root / "brick" / "v2-abcdef"
    shutil.copytree(root / "brick" / first, second)
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"version": second.name}))
    return root


@pytest.fixture(scope="module")
def client(own_registry: Path) -> Iterator[httpx.Client]:
    config = ServeConfig(registry=str(own_registry), port=0, reload_seconds=0.3, max_body_mb=0.1)
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


@pytest.mark.parametrize(
    ("path", "content", "status", "says"),
    [
        ("/v1/score/zippr", None, 404, "brick"),
        ("/v1/score/brick", b"no image", 422, "no image"),
        ("/v1/score/brick", b"", 422, "empty"),
        ("/v1/score/brick", bytes(200_000), 413, "larger"),
        ("/v1/nothing", b"", 404, ""),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_reason(
    client: httpx.Client, image: bytes, path: str, content: bytes | None, status: int, says: str
):
    answer = client.post(path, content=image if content is None else content)
    assert answer.status_code == status
    assert says in answer.json()["detail"]


def test_the_server_lives_and_lists_its_categories(client: httpx.Client):
    assert client.get("/healthz").json() == {"status": "ok", "reason": None}
    categories = client.get("/v1/categories").json()
    assert [category["category"] for category in categories] == ["brick"]


def test_promotion_and_rollback_are_taken_over_and_a_broken_checkpoint_is_not(
    client: httpx.Client, own_registry: Path, image: bytes
):
    registry = Registry(Storage(str(own_registry)))
    first = registry.best("brick")

    @soon
    def served(version: str, problem: bool) -> None:
        assert client.post("/v1/score/brick", content=image).json()["checkpoint"] == version
        assert (client.get("/v1/categories").json()[0]["problem"] is not None) == problem

    served(first, problem=False)
    registry.promote("brick", "v2")
    served("v2-abcdef", problem=False)
    registry.rollback("brick")
    served(first, problem=False)

    broken = own_registry / "brick" / "v3-broken"
    shutil.copytree(own_registry / "brick" / "v2-abcdef", broken)
    (broken / "decoders.safetensors").write_bytes(b"nonsense")
    registry.promote("brick", "v3")
    served(first, problem=True)
    registry.rollback("brick")
    served(first, problem=False)


def test_a_registry_without_checkpoint_and_a_taken_port_are_told(tmp_path: Path, registry: Path, client: httpx.Client):
    Registry.create(Storage(str(tmp_path)))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Server(ServeConfig(registry=str(tmp_path), port=0))
    with pytest.raises(ServingError, match="--port"):
        Server(ServeConfig(registry=str(registry), port=client.base_url.port))


def test_the_command_serves_until_it_is_interrupted(registry: Path, image: bytes):
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
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")
    finally:
        server.kill()
