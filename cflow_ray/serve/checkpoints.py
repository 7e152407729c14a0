"""Which version of each category is served now: follows the registry's pointers and never takes over a broken one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from cflow_ray.errors import CflowRayError, CheckpointError, MissingFileError
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import CheckpointKey, Pointer, Registry

log = logging.getLogger(__name__)

_READERS = 8  # a pointer is one small request, and there may be hundreds


class UnknownCategoryError(CheckpointError):
    """A category that is not served."""

    def __init__(self, category: str, known: list[str]) -> None:
        super().__init__(f"no checkpoint for {category!r}; this server has {', '.join(known) or 'none'}")
        self.known = known
        """The categories that are."""


@dataclass(frozen=True)
class ServedCheckpoint:
    """The version of a category that answers requests, with its manifest; `problem` says why a newer one does not."""

    manifest: Manifest
    problem: str | None = None

    @property
    def key(self) -> CheckpointKey:
        """The bank's key of it."""
        return self.manifest.category, self.manifest.version

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of its detector."""
        return Calibration.of(self.manifest.peaks, self.manifest.calibration_scores)


class ServedCheckpoints:
    """The table of served versions. `refresh` follows the registry; requests keep the version they were admitted with.

    A version that is to replace another must pass `check`, which raises where it cannot score. `observe` is told
    whether a moved pointer was taken over.
    """

    def __init__(
        self,
        registry: Registry,
        check: Callable[[CheckpointKey], object],
        observe: Callable[[bool], None] = lambda taken_over: None,
    ) -> None:
        self._registry = registry
        self._check = check
        self._observe = observe
        self._served: dict[str, ServedCheckpoint] = {}
        self._refused: dict[str, str] = {}
        self._lock = threading.Lock()
        self.problem: str | None = None
        """Why the registry could not be read at the last refresh; None if it could."""
        self.refresh()

    def refresh(self) -> None:
        """Take over moved pointers; a version that does not load stays out and the one before goes on.

        Where the registry cannot be read, all goes on as it was.
        """
        with self._lock, ThreadPoolExecutor(_READERS, thread_name_prefix="pointers") as readers:
            try:
                registry = Registry(self._registry.storage)  # a root that is gone has no categories, but no end either
                names = registry.names()
                self._served = {
                    served.manifest.category: served
                    for served in readers.map(self._follow, names)
                    if served is not None
                }
            except CflowRayError as error:
                self.problem = str(error)
                log.warning("the registry cannot be read, serving what is known: %s", error)
                return
            self.problem = None
            self._refused = {category: why for category, why in self._refused.items() if category in names}

    def __getitem__(self, category: str) -> ServedCheckpoint:
        """What serves a category; raises UnknownCategoryError with the known ones."""
        served = self._served.get(category)
        if served is None:
            raise UnknownCategoryError(category, sorted(self._served))
        return served

    def all(self) -> list[ServedCheckpoint]:
        """Everything that is served, by category."""
        return [served for _, served in sorted(self._served.items())]

    @property
    def refused(self) -> int:
        """Categories whose promoted version is not the one that serves."""
        return len(self._refused)

    def _follow(self, category: str) -> ServedCheckpoint | None:
        """What is to serve a category; StorageError where the registry cannot be read."""
        current = self._served.get(category)
        try:
            pointer = self._registry.pointer_if_there(category)
            taken = None if pointer is None else self._take_over(category, pointer, current)
        except (CheckpointError, MissingFileError) as error:
            self._refuse(category, str(error))
            return current and replace(current, problem=str(error))
        self._refused.pop(category, None)
        return taken

    def _take_over(self, category: str, pointer: Pointer, current: ServedCheckpoint | None) -> ServedCheckpoint:
        if current is not None and current.manifest.version == pointer.version:
            return current if current.problem is None else replace(current, problem=None)
        manifest = self._registry.manifest(category, pointer.version)
        if current is not None:
            self._check((category, pointer.version))
            self._observe(True)
            log.info("%s: %s follows %s", category, pointer.version, current.manifest.version)
        return ServedCheckpoint(manifest)

    def _refuse(self, category: str, why: str) -> None:
        if self._refused.get(category) != why:
            self._observe(False)
            log.warning("%s: the promoted version is not taken over: %s", category, why)
        self._refused[category] = why
