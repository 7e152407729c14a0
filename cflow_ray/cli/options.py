"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from cflow_ray.cli.command import Command
from cflow_ray.config import Layout, Runtime


class Names(click.ParamType[tuple[str, ...]]):
    """`a,b` as names."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names between the commas, without blanks."""
        if not isinstance(value, str):
            return tuple(value)
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if not names:
            self.fail(f"{value!r} names nothing; give names with commas between them, e.g. screw,cable", param, ctx)
        return names


class Quantities(click.ParamType[dict[str, str]]):
    """`cpu=1,memory=4GB` as a mapping; its values are left for the configuration to judge."""

    name = "quantities"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """The pairs between the commas."""
        if not isinstance(value, str):
            return dict(value)
        pairs = [pair.strip() for pair in value.split(",") if pair.strip()]
        if not all("=" in pair for pair in pairs):
            self.fail(f"{value!r} is not like cpu=1,gpu=0.25,memory=4GB", param, ctx)
        return dict(pair.split("=", 1) for pair in pairs)


category_option = click.option("--category", "only", type=Names(), metavar="A,B", help="Only these categories.")
data_options = [
    click.option("--data", metavar="URI", help="Root of the data set (for layout table: the table)."),
    click.option("--root", metavar="URI", help="Root of the paths in a table [the table's folder]."),
    click.option("--layout", type=click.Choice(get_args(Layout)), help="How the data set is laid out [mvtec]."),
    category_option,
]


runtime_option = click.option(
    "--runtime", type=click.Choice(get_args(Runtime)), help="What executes the models [auto: the fastest installed]."
)

resources_option = click.option(
    "--resources", type=Quantities(), metavar="cpu=1,gpu=0.25,memory=4GB", help="Of one worker [cpu=1]."
)
wait_option = click.option(
    "--wait", is_flag=True, default=None, help="Begin with what the cluster has room for and wait for the rest."
)


def with_options(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """A decorator that adds the options in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
