"""Replicas of the server: they finish what they began, are replaced when killed, come with the load and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import ray
import tenacity
from ray import serve

from cflow_ray.answers import ScoreAnswer
from cflow_ray.client import Client
from cflow_ray.config import ServeConfig
from cflow_ray.serve import Server

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

patiently = tenacity.retry(
    stop=tenacity.stop_after_delay(120),
    wait=tenacity.wait_fixed(0.2),
    retry=tenacity.retry_if_exception_type(AssertionError),
)


@pytest.fixture(scope="module")
def image(miniature: Path) -> bytes:
    return (miniature / "brick/test/crack/000.png").read_bytes()


@pytest.fixture(scope="module")
def url(registry: Path) -> Iterator[str]:
    """Of a server with one or two replicas."""
    config = ServeConfig(
        registry=str(registry), port=0, replicas="1:2", batch_size=2, scale_up_seconds=0.5, scale_down_seconds=1
    )
    with Server(config) as server:
        yield server.url


def replicas() -> list[str]:
    """Names of the replicas that run."""
    app = serve.status().applications["cflow-ray"]
    running = app.deployments["ScoringService"].replica_states.get("RUNNING", 0)
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    names = [name for name in names if "#ScoringService#" in name]
    return names if len(names) == running else []


def test_a_server_that_stops_answers_what_it_has_begun(registry: Path, image: bytes):
    config = ServeConfig(registry=str(registry), port=0)
    sent = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield image[:100]
        sent.set()
        assert stopping.wait(60)
        yield image[100:]

    stopping = threading.Event()
    server = Server(config)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(httpx.post, f"{server.url}/v1/score/brick", content=slowly(), timeout=60)
        assert sent.wait(60)
        stopped = pool.submit(server.stop)

        @patiently
        def takes_nothing_new() -> None:
            with suppress(httpx.TransportError):
                assert httpx.get(f"{server.url}/healthz").status_code != 200

        takes_nothing_new()
        stopping.set()
        assert asked.result(60).status_code == 200
        stopped.result(120)


def test_replicas_come_with_the_load_and_go_when_it_is_over(url: str, image: bytes):
    @patiently
    def running(count: int) -> None:
        assert len(replicas()) == count

    running(1)
    stop = threading.Event()

    def load() -> int:
        with httpx.Client(base_url=url, timeout=60) as client:
            answered = 0
            while not stop.is_set():
                assert client.post("/v1/score/brick", content=image).status_code == 200
                answered += 1
            return answered

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(load) for _ in range(8)]
        try:
            running(2)
        finally:
            stop.set()
        assert all(client.result(60) for client in clients)
    running(1)


def test_the_client_asks_again_what_a_killed_replica_had_begun(url: str, image: bytes):
    with Client(url, deadline=60) as client:
        before = client.score("brick", image)
        stop = threading.Event()

        def hammer() -> list[ScoreAnswer]:
            answers = []
            while not stop.is_set():
                answers.append(client.score("brick", image))
            return [*answers, client.score("brick", image)]

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(hammer) for _ in range(4)]
            killed = replicas()[0]
            ray.kill(ray.get_actor(killed, namespace="serve"))

            @patiently
            def replaced() -> None:
                assert set(replicas()) - {killed}

            try:
                replaced()
                client.score("brick", image)
            finally:
                stop.set()
            answers = [answer for asked in asking for answer in asked.result(120)]
    assert {answer.checkpoint for answer in answers} == {before.checkpoint}
    assert [answer.score for answer in answers] == pytest.approx([before.score] * len(answers), abs=1e-5)
