"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from cflow_ray.cli.command import Command
from cflow_ray.config import Runtime


class Names(click.ParamType[tuple[str, ...]]):
    """`a,b` as names."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names between the commas, without blanks."""
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


category_option = click.option("--category", "only", type=Names(), metavar="A,B", help="Only these categories.")
data_options = [
    click.option("--data", metavar="URI", help="Root of the data set (for layout table: the table)."),
    click.option(
        "--layout", type=click.Choice(["mvtec", "folder", "table"]), help="How the data set is laid out [mvtec]."
    ),
    category_option,
]


runtime_option = click.option(
    "--runtime", type=click.Choice(get_args(Runtime)), help="What executes the models [auto: the fastest installed]."
)


def with_options(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """A decorator that adds the options in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
