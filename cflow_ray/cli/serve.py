"""`cflow-ray serve`."""

from __future__ import annotations

import signal
from queue import SimpleQueue
from typing import Any

import click
import yaml

from cflow_ray.cli.command import Output, common, settings_of
from cflow_ray.cli.options import resources_option, runtime_option
from cflow_ray.config import ServeConfig, TokenConfig, load_config


@click.command(epilog="Example: cflow-ray serve --registry s3://line/registry --port 8000")
@click.option("--registry", metavar="URI", help="Registry with the checkpoints.")
@click.option("--host", help="Address to listen on [127.0.0.1].")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one [8000].")
@click.option("--replicas", metavar="N|MIN:MAX", help="Copies of the service, or bounds for the load to decide [1].")
@resources_option
@click.option("--gpu", type=float, metavar="SHARE", help="GPUs of one replica, e.g. 0.25 [0].")
@click.option("--tokens", metavar="FILE", help="YAML file, path or URI, of the tokens that are let in.")
@runtime_option
@common
def serve(out: Output, config_file: str | None, **flags: Any) -> None:
    """Serve the best checkpoints over HTTP until interrupted or told to end; promoted versions are taken over meanwhile.

    Another host than 127.0.0.1 needs tokens: cflow-ray token makes them.
    """
    config = load_config(ServeConfig, config_file, settings_of(flags))
    from cflow_ray.serve import Server

    with Server(config) as server:
        told_to_end = _told_to_end()
        out({"url": server.url}, f"serving {config.registry} at {server.url}", f"try: curl {server.url}/v1/categories")
        told_to_end.get()


def _told_to_end() -> SimpleQueue[int]:
    """Where the first SIGINT, which Ctrl-C sends, or SIGTERM, which systemd, Docker and Kubernetes send, arrives.

    Ray's own handler of SIGTERM ends the process at once, requests and all. A second signal meets the handlers of before.
    """
    told: SimpleQueue[int] = SimpleQueue()  # whose put may interrupt its get, unlike an Event's set its wait

    def tell(number: int, _: object) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        told.put(number)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    return told


@click.command(epilog="Example: cflow-ray token line-3 --rate 20")
@click.argument("name", required=False)
@click.option("--role", type=click.Choice(["score", "admin"]), help="admin may promote too [score].")
@click.option("--rate", type=float, metavar="N", help="Requests a second in the mean, of each replica [no bound].")
@common
def token(out: Output, config_file: str | None, **flags: Any) -> None:
    """Make a bearer token for the server: its entry goes to stdout, the secret, shown this once, to stderr.

    Append the entry to the server's file of tokens. It holds a hash; taken out again, the token is let in no longer.
    """
    config = load_config(TokenConfig, config_file, settings_of(flags))
    from cflow_ray.serve.access import make_token

    secret, made = make_token(config.name, config.role, config.rate)
    values = made.model_dump(exclude_defaults=True)
    if not out.as_json:
        click.echo(f"token of {made.name}: {secret}", err=True)
    line = yaml.safe_dump([values], default_flow_style=None, sort_keys=False, width=1000).strip()
    out({"token": secret, "entry": values}, line)
