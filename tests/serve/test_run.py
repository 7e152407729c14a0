"""Starting Ray Serve: what goes wrong on a busy node is told in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve
from ray.exceptions import RayActorError

from cflow_ray.config import ServeConfig
from cflow_ray.errors import ServingError
from cflow_ray.serve import Server


@pytest.mark.parametrize("error", [TimeoutError("HTTP proxies not available after 60s."), RayActorError()])
def test_a_proxy_that_does_not_start_is_told_and_nothing_stays_up(
    error: Exception, fitted_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**settings: object) -> None:
        raise error

    stopped: list[bool] = []
    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(serve, "shutdown", lambda: stopped.append(True))
    monkeypatch.setattr("cflow_ray.serve.run.ray.init", lambda **settings: None)
    config = ServeConfig(registry=str(fitted_registry), port=0)
    with pytest.raises(ServingError, match=r"proxy did not start within a minute: .*busy"):
        Server(config)
    assert stopped == [True]
