"""What every command shares: its common options, its output, and how flags become settings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout
from functools import wraps
from typing import Any, TextIO, TypeVar

import click
from rich.console import Console
from rich.table import Table

from cflow_ray.errors import CflowRayError, ConfigError
from cflow_ray.progress import log_to_stderr

Command = TypeVar("Command", bound=Callable[..., Any])

_WIDTH_OFF_TERMINAL = 160


def common(command: Command) -> Command:
    """The options of every command; expected errors become one line and an exit code."""

    @click.option(
        "--config", "config_file", metavar="FILE", help="YAML file with any of the settings; flags override it."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; all else goes to stderr.")
    @click.option(
        "--storage-option",
        "storage_option",
        multiple=True,
        metavar="K=V",
        help="Option of the object store; repeatable.",
    )
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> None:
        log_to_stderr()
        out = Output(as_json, sys.stdout)
        try:
            with redirect_stdout(sys.stderr):  # Ray prints there too, and stdout is for the result alone
                code = command(*args, out=out, **kwargs)
        except CflowRayError as error:
            out.fail(str(error))
            code = error.exit_code
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to go on.", err=True)
            code = 1
        sys.exit(code or 0)

    return wrapped  # type: ignore[return-value]


class Output:
    """Prints a result as one JSON object or as text."""

    def __init__(self, as_json: bool, stream: TextIO) -> None:
        self.as_json = as_json
        self._stream = stream
        self._has_result = False
        self._console = Console(file=stream, emoji=False)
        if not self._console.is_terminal:
            self._console.width = _WIDTH_OFF_TERMINAL

    def __call__(self, values: Mapping[str, Any], *text: str | Table) -> None:
        """Print `values` where JSON was asked for, else the text and tables."""
        self._has_result = True
        if self.as_json:
            click.echo(json.dumps(values), file=self._stream)
            return
        for part in text:
            self._console.print(part, highlight=False, markup=False)
        self._stream.flush()

    def fail(self, message: str) -> None:
        """An expected error: one line on stderr, and as JSON on stdout where that was asked for and has no result yet."""
        if self.as_json and not self._has_result:
            click.echo(json.dumps({"error": message}), file=self._stream)
        click.echo(f"error: {message}", err=True)


_SETTING = {  # flags whose setting has another name
    "encoder": "defaults.encoder.name",
    "weights": "defaults.encoder.weights",
    "input_size": "defaults.input_size",
    "recipe": "defaults.recipe",
    "calibration": "defaults.calibration",
    "dtype": "defaults.dtype",
    "seed": "defaults.seed",
    "target_fpr": "defaults.target_fpr",
    "workers": "cluster.workers",
    "resources": "cluster.resources",
    "gpus_per_worker": "cluster.resources.gpu",
    "gpu": "cluster.resources.gpu",
    "wait": "cluster.wait",
    "storage_option": "storage_options",
    "checkpoint": "checkpoints",
}


_SWITCH = {"true": True, "false": False}  # any text counts as true for a store's client; a key may look like a number


def settings_of(
    flags: Mapping[str, Any], own_names: Collection[str] = (), detector: str = "defaults"
) -> dict[str, Any]:
    """Flags under the names of the settings they override; those in `own_names` keep theirs.

    A detector's settings stand below the key `detector`.
    """
    names = {name: name if name in own_names else _SETTING.get(name, name) for name in flags}
    settings = {re.sub(r"^defaults\.", f"{detector}.", names[name]): value for name, value in flags.items()}
    for name in ("storage_options", "checkpoints"):
        if name in settings:
            settings[name] = _pairs(name, settings[name])
    if "storage_options" in settings:
        of_store = settings["storage_options"]
        settings["storage_options"] = {name: _SWITCH.get(text.lower(), text) for name, text in of_store.items()}
    return settings


def _pairs(name: str, pairs: tuple[str, ...]) -> dict[str, str]:
    """`k=v` flags as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--{name.rstrip('s').replace('_', '-')} {pair!r} is no key=value.")
    return dict(pair.split("=", 1) for pair in pairs)
