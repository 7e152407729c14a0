"""What a run asks of Ray, and what every verb takes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from cflow_ray.config.model import Bytes, Model
from cflow_ray.errors import ConfigError


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

    def room(self, node: Mapping[str, float]) -> int:
        """How many workers fit a node with these resources."""
        return min(int(node.get(name, 0) // value) for name, value in self.as_ray().items())

    def __str__(self) -> str:
        """As an error says it."""
        return ", ".join(f"{value:g} {name}" for name, value in self.as_ray().items())

    def _named(self) -> dict[str, float]:
        return {"CPU": self.cpu, "GPU": self.gpu, "memory": self.memory}


class ClusterConfig(Model):
    """What the run asks of Ray."""

    address: str | None = None
    """Address of a running cluster; null joins $RAY_ADDRESS or starts a local one."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Worker processes at most; auto: one a category, as many of them as the cluster has room for now and later."""
    resources: Resources = Resources()
    """Of every worker."""
    wait: bool = False
    """Begin with the workers that there is room for, none even, where the cluster has too few now, instead of failing."""

    def worker_count(self, nodes: Sequence[Mapping[str, float]], tasks: int) -> int:
        """How many workers a run for so many tasks has at most, if need be once the cluster has grown.

        ConfigError where those that are asked for do not fit nodes with these resources and the run may not `wait`.
        """
        room = self.room(nodes)
        asked = 1 if self.workers == "auto" else self.workers
        if asked > room and not self.wait:
            total = {name: sum(node.get(name, 0) for node in nodes) for name in self.resources.as_ray()}
            has = ", ".join(f"{value:g} {name}" for name, value in total.items())
            raise ConfigError(
                f"{asked} workers of {self.resources} do not fit the cluster, which has {has} on {len(nodes)} "
                f"nodes, room for {room}. Ask for fewer with --workers or --resources, or let the run --wait for nodes."
            )
        return tasks if self.workers == "auto" else min(self.workers, tasks)

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
