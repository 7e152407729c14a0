"""What a run asks of Ray, and what every verb takes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cflow_ray.config.model import Bytes, Model
from cflow_ray.errors import ConfigError

_PARTS = 10_000  # of one, in which Ray counts: five fifths of a GPU fit it, although 1.0 // 0.2 is 4


class Resources(Model):
    """What one worker takes of its node."""

    cpu: float = Field(default=1, gt=0)
    gpu: float = Field(default=0, ge=0)
    """Fractions let several workers share a GPU."""
    memory: Annotated[Bytes, Field(ge=0)] = 0
    """Bytes that Ray sets aside for it, e.g. 4GB; 0 leaves memory out of the plan."""

    def as_ray(self) -> dict[str, float]:
        """Under Ray's names, what is 0 left out."""
        return {name: value for name, value in self._named().items() if value > 0}

    def as_options(self) -> dict[str, float]:
        """The same as Ray's tasks, actors and deployments are told."""
        return {{"CPU": "num_cpus", "GPU": "num_gpus"}.get(name, name): value for name, value in self.as_ray().items()}

    def room(self, node: Mapping[str, float]) -> int:
        """How many workers fit a node with these resources."""
        return min(round(node.get(name, 0) * _PARTS) // round(value * _PARTS) for name, value in self.as_ray().items())

    def __str__(self) -> str:
        """As an error says it."""
        return ", ".join(f"{value:g} {name}" for name, value in self.as_ray().items())

    def _named(self) -> dict[str, float]:
        return {"CPU": self.cpu, "GPU": self.gpu, "memory": self.memory}


class Range(Model):
    """A number that load and room decide, between two bounds."""

    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"the least, {self.min}, is above the most, {self.max}")
        return self


def _parse_range(given: object) -> object:
    """Bounds from a number or text like `2:8`; bounds stay as they are."""
    if isinstance(given, Range | Mapping):
        return given
    match = re.fullmatch(r"([1-9][0-9]*)(?::([1-9][0-9]*))?", str(given))
    if match is None or int(match[1]) > int(match[2] or match[1]):
        raise ValueError("give a number from 1 on, or a range like 2:8 (at least, at most)")
    return {"min": int(match[1]), "max": int(match[2] or match[1])}


def _parse_workers(given: object) -> object:
    """As `_parse_range`, or `auto`."""
    if given == "auto":
        return given
    try:
        return _parse_range(given)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


Replicas = Annotated[Range, BeforeValidator(_parse_range)]
"""A number of replicas, or a range `least:most`."""
Workers = Annotated[Range | Literal["auto"], BeforeValidator(_parse_workers)]
"""A number of workers, a range `least:most`, or `auto`."""


class ClusterConfig(Model):
    """What the run asks of Ray."""

    address: str | None = None
    """Address of a running cluster; null joins $RAY_ADDRESS or starts a local one."""
    workers: Workers = "auto"
    """Worker processes: a number, or `least:most` between which their number follows work and room; auto: one for each
    category of a fit and each chunk of a scoring job, as many of them as the cluster has room for now and later."""
    resources: Resources = Resources()
    """Of every worker."""
    wait: bool = False
    """Begin with the workers that there is room for, none even, where the cluster has too few now, instead of failing."""

    def worker_count(self, nodes: Sequence[Mapping[str, float]], tasks: int) -> int:
        """How many workers a run for so many tasks has at most, if need be once the cluster has grown.

        ConfigError where those that are asked for do not fit nodes with these resources and the run may not `wait`.
        """
        (least, most), room = self._asked(tasks), self.room(nodes)
        if least > room and not self.wait:
            total = {name: sum(node.get(name, 0) for node in nodes) for name in self.resources.as_ray()}
            has = ", ".join(f"{value:g} {name}" for name, value in total.items())
            raise ConfigError(
                f"{least} workers of {self.resources} do not fit the cluster, which has {has} on {len(nodes)} "
                f"nodes, room for {room}. Ask for fewer with --workers or --resources, or let the run --wait for nodes."
            )
        return min(most, tasks)

    def pool(self, nodes: Sequence[Mapping[str, float]], tasks: int) -> tuple[int, int]:
        """With how many workers a pool begins, no more than there is room for, and how many it may grow to.

        ConfigError as `worker_count`.
        """
        most = self.worker_count(nodes, tasks)
        first = most if self.workers == "auto" else self._asked(tasks)[0]
        return max(1, min(first, most, self.room(nodes))), most

    def _asked(self, tasks: int) -> tuple[int, int]:
        """Workers at least and at most."""
        if self.workers == "auto":
            return 1, tasks
        return self.workers.min, self.workers.max

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many workers fit nodes with these resources."""
        return sum(self.resources.room(node) for node in nodes)

    def init_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ray.init`; a local cluster starts without dashboard, one joined stays as it is."""
        arguments: dict[str, Any] = {"ignore_reinit_error": True, "logging_level": "ERROR", "log_to_driver": False}
        if self.address or os.environ.get("RAY_ADDRESS"):
            return arguments | {"address": self.address or "auto"}
        # "local": with no address at all, Ray would join the cluster that a file in its folder names, running or long dead.
        cpus = max(2, math.ceil(os.cpu_count() or 2))
        return arguments | {"address": "local", "include_dashboard": False, "num_cpus": cpus}


class RunConfig(Model):
    """What every verb takes."""

    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the file system behind the URIs, as fsspec names them (e.g. endpoint_url, key, secret)."""
    cluster: ClusterConfig = ClusterConfig()
