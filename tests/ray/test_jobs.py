"""The entry points of `ray job submit`, submitted to a local cluster with its job server."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.stores import free_port

pytestmark = pytest.mark.ray

CHECKOUT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
# Ray 2.60 wants a token; here head, client and jobs get one that is not kept in anybody's home folder.
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ENVIRONMENT.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the job server of a cluster of its own, on loopback."""
    folder, port, dashboard = tmp_path_factory.mktemp("r"), free_port(), free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    # The agent that runs the jobs has a fixed port, which the session's own cluster may hold.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    head = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        head.wait(60)


# The dashboard comes up first, its agent that runs the jobs some seconds later.
@tenacity.retry(
    retry=tenacity.retry_if_result(lambda log: "No available agent" in log or "Failed to connect" in log),
    stop=tenacity.stop_after_delay(120),
    wait=tenacity.wait_fixed(1),
)
def submit(dashboard: str, *arguments: str) -> str:
    """Run a job to its end, as a user does; returns what was printed, the job's log included."""
    command = [RAY, "job", "submit", "--address", dashboard, "--", sys.executable, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    return done.stdout + done.stderr


def test_fit_score_and_evaluate_run_as_jobs(dashboard: str, miniature: Path, tmp_path: Path):
    registry, scores = tmp_path / "registry", tmp_path / "scores"
    config = tmp_path / "fit.yaml"
    config.write_text(f"data: {miniature}\nregistry: {registry}\ndefaults: {{recipe: fast, input_size: 96}}\n")

    log = submit(dashboard, str(CHECKOUT / "jobs/fit.py"), "--config", str(config), "--category", "brick")
    assert "succeeded" in log, log
    assert Registry(Storage(str(registry))).categories() == ["brick"]

    flags = ["--registry", str(registry), "--output", str(scores), "--maps", "all"]
    log = submit(dashboard, str(CHECKOUT / "jobs/score.py"), str(miniature), *flags)
    assert "succeeded" in log, log
    assert (scores / "_SUCCESS").exists()

    log = submit(dashboard, str(CHECKOUT / "jobs/evaluate.py"), str(scores), "--data", str(miniature))
    assert "Image-Level AUC" in log
