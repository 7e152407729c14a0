"""`cflow-ray serve`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import click

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import runtime_option
from cflow_ray.config import ServeConfig, load_config


@click.command(epilog="Example: cflow-ray serve --registry s3://line/registry --port 8000")
@click.option("--registry", metavar="URI", help="Registry with the checkpoints.")
@click.option("--host", help="Address to listen on [127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one [8000].")
@click.option("--replicas", type=int, metavar="N", help="Copies of the service [1].")
@runtime_option
@common
def serve(out: Output, config_file: str | None, **flags: Any) -> None:
    """Serve the best checkpoints over HTTP until interrupted; promoted versions are taken over while it runs."""
    config = load_config(ServeConfig, config_file, settings_of(flags))
    from cflow_ray.serve import Server

    with Server(config) as server:
        out({"url": server.url}, f"serving {config.registry} at {server.url}", f"try: curl {server.url}/v1/categories")
        with suppress(KeyboardInterrupt):  # how a server is stopped
            while True:
                time.sleep(1)
