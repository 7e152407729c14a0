"""Building the Serve application, and running it from a command line or a test."""

from __future__ import annotations

import logging
import os
import socket
from types import TracebackType
from typing import Any, Self

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cflow_ray.config import ServeConfig, load_config
from cflow_ray.errors import CheckpointError, ConfigError, ServingError
from cflow_ray.model.extras import check_runtime
from cflow_ray.serve.access import VARIABLE, Access, asks_for_tokens, is_loopback
from cflow_ray.serve.api import build_api
from cflow_ray.serve.envelope import access_log
from cflow_ray.serve.service import ScoringService
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

_APP = "cflow-ray"
_MOST_REQUESTS = 1024  # in one replica, waiting ones included; the service refuses before that
_BUSY = 0.5  # of a full batch: requests of a replica, in the mean, from where on another is worth its start
_DRAIN_SECONDS = 5  # beyond the deadline of the last request, for its answer to leave
PATIENT_PROXY = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""Ray kills a proxy that is not there after 5 seconds, which on a busy node is before it has begun."""


class Replica(ScoringService):
    """The service as Ray Serve runs it."""

    def __init__(self, config_json: str) -> None:
        _log_access()
        super().__init__(ServeConfig.model_validate_json(config_json), serve.get_replica_context().replica_tag)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application of this replica, which Serve asks for once the service is there."""
        return build_api(self, tells_id=False)


def build_app(args: dict[str, Any]) -> serve.Application:
    """The Serve application over a registry: the builder of `serve run`, `serve deploy`, RayService and the CLI.

    `args` are those of ServeConfig, as a Serve config file gives them. Raises CheckpointError where the registry is
    missing or of another format, ConfigError where the runtime is not installed or the tokens are damaged.
    """
    config = load_config(ServeConfig, None, args)
    check_runtime(config.runtime)
    Access(config)
    registry = Registry(Storage(config.registry, config.storage_options))
    if not registry.categories():
        raise CheckpointError(f"the registry {config.registry} holds no checkpoint. Run: cflow-ray fit ...")
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="ScoringService",
        **_copies(config),
        max_ongoing_requests=_MOST_REQUESTS,
        graceful_shutdown_timeout_s=config.deadline_seconds + _DRAIN_SECONDS,
        ray_actor_options=config.cluster.resources.as_options(),
    )
    application: serve.Application = deployment.bind(config.model_dump_json())
    return application


def _copies(config: ServeConfig) -> dict[str, Any]:
    """How many replicas there are, for `serve.deployment`."""
    if config.replicas.min == config.replicas.max:
        return {"num_replicas": config.replicas.min}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.replicas.min,
            max_replicas=config.replicas.max,
            target_ongoing_requests=max(1.0, _BUSY * config.batch_size),
            upscale_delay_s=config.scale_up_seconds,
            downscale_delay_s=config.scale_down_seconds,
            look_back_period_s=max(2.0, config.scale_up_seconds),
        )
    }


def _log_access() -> None:
    """Write the access log to the replica's standard error, which Ray keeps in its session's folder."""
    if not access_log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        access_log.addHandler(handler)
        access_log.setLevel(logging.INFO)
        access_log.propagate = False


class Server:
    """A running server; a context manager that stops it. Port 0 takes a free one."""

    def __init__(self, config: ServeConfig) -> None:
        if not is_loopback(config.host) and not asks_for_tokens(config):
            raise ConfigError(
                f"on {config.host} others can reach the server, so it needs tokens. Make one with: cflow-ray token NAME "
                f">> tokens.yaml, and give --tokens tokens.yaml or ${VARIABLE}."
            )
        application = build_app(config.model_dump())
        port = config.port or _free_port(config.host)
        _refuse_taken_port(config.host, port)
        for name, value in PATIENT_PROXY.items():
            os.environ.setdefault(name, value)  # of a cluster that starts here; one that is joined has its own
        ray.init(**config.cluster.init_arguments())
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _start_serve(config.host, port)
        try:
            self.handle: DeploymentHandle = serve.run(application, name=_APP, route_prefix="/")
        except RuntimeError as error:
            serve.shutdown()
            raise ServingError(f"the server did not start: {error}") from error
        self.url = f"http://{config.host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving once what was begun is answered; the Ray cluster goes on."""
        serve.delete(_APP)  # which waits for the replicas; a shutdown alone does not
        serve.shutdown()


def _start_serve(host: str, port: int) -> None:
    try:
        serve.start(
            http_options=HTTPOptions(host=host, port=port),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
    except (TimeoutError, ray.exceptions.RayActorError) as error:
        serve.shutdown()
        raise ServingError(
            f"Ray's HTTP proxy did not start within a minute: {str(error).partition(chr(10))[0]}. The node is too busy, or "
            "short of memory; see what else runs on it and start again."
        ) from error


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host}:{port}: {error.strerror}. Give another --port or --host."
        ) from error
