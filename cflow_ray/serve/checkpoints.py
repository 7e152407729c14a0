"""Which version of each category is served now: follows the registry's pointers and never takes over a broken one."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from cflow_ray.errors import CflowRayError, CheckpointError
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.checkpoint import Manifest
from cflow_ray.store.registry import CheckpointKey, Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedCheckpoint:
    """The version of a category that answers requests, with its manifest; `problem` says why a newer one does not."""

    manifest: Manifest
    problem: str | None = None

    @property
    def key(self) -> CheckpointKey:
        """The bank's key of it."""
        return self.manifest.category, self.manifest.version

    @property
    def calibration(self) -> Calibration:
        """The calibration of its detector."""
        return Calibration.of(self.manifest.peaks, self.manifest.calibration_scores)


class ServedCheckpoints:
    """The table of served versions. `refresh` follows the registry; requests keep the version they were admitted with."""

    def __init__(self, registry: Registry, bank: DetectorBank[CheckpointKey]) -> None:
        self._registry = registry
        self._bank = bank
        self._served: dict[str, ServedCheckpoint] = {}
        self._lock = threading.Lock()
        self.problem: str | None = None
        """Why the registry could not be read at the last refresh; None if it could."""
        self.refresh()

    def refresh(self) -> None:
        """Take over moved pointers; a version that does not load stays out and the one before goes on."""
        with self._lock:
            try:
                best = {category: self._registry.best(category) for category in self._registry.categories()}
            except CflowRayError as error:
                self.problem = str(error)
                log.warning("the registry cannot be read, serving what is known: %s", error)
                return
            self.problem = None
            self._served = {
                category: self._taken_over(category, version, self._served.get(category))
                for category, version in best.items()
                if category in self._served or self._loads(category, version)
            }

    def __getitem__(self, category: str) -> ServedCheckpoint:
        """What serves a category; raises CheckpointError with the known ones."""
        served = self._served.get(category)
        if served is None:
            known = ", ".join(sorted(self._served)) or "none"
            raise CheckpointError(f"no checkpoint for {category!r}; this server has {known}")
        return served

    def all(self) -> list[ServedCheckpoint]:
        """Everything that is served, by category."""
        return [self._served[category] for category in sorted(self._served)]

    def _taken_over(self, category: str, version: str, current: ServedCheckpoint | None) -> ServedCheckpoint:
        if current is not None and current.manifest.version == version:
            return ServedCheckpoint(current.manifest)
        try:
            manifest = self._registry.manifest(category, version)
            if current is not None:
                self._bank.detector((category, version))
            return ServedCheckpoint(manifest)
        except CflowRayError as error:
            if current is None:
                raise
            log.warning("%s stays at %s: %s", category, current.manifest.version, error)
            return ServedCheckpoint(current.manifest, problem=str(error))

    def _loads(self, category: str, version: str) -> bool:
        """Whether a category that is new to this server has a readable manifest."""
        try:
            self._registry.manifest(category, version)
        except CflowRayError as error:
            log.warning("%s is not served: %s", category, error)
            return False
        return True
