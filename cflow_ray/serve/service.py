"""What one replica does: decode, score in batches, judge; the same decoding and bank as the archive job."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cflow_ray.config import ServeConfig
from cflow_ray.data.images import Frame, PreparedImage, prepare
from cflow_ray.model.bank import Image, LoadedDetector
from cflow_ray.model.detector import Finding
from cflow_ray.model.device import prepared_device
from cflow_ray.model.verdict import Verdict, judge
from cflow_ray.serve.access import Access
from cflow_ray.serve.admission import Room
from cflow_ray.serve.batching import Batcher
from cflow_ray.serve.checkpoints import ServedCheckpoint, ServedCheckpoints
from cflow_ray.serve.loading import Loading
from cflow_ray.serve.metrics import Metrics
from cflow_ray.serve.pictures import map_picture, overlay_picture
from cflow_ray.store.patience import Patience
from cflow_ray.store.registry import CheckpointKey, Pointer, Registry
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

_PATIENCE = Patience(seconds=5)  # who asks for a cold category waits as long as this
_LEAST_THREADS = 2  # for decoding: one may wait for the other's file to be decompressed


@dataclass(frozen=True)
class Wishes:
    """What a client wants to know beyond the verdict."""

    target_fpr: float | None = None
    """Replaces the checkpoint's own."""
    map: bool = False
    overlay: bool = False


@dataclass(frozen=True)
class Timings:
    """Milliseconds that an image took, stage by stage."""

    decode_ms: float
    wait_ms: float
    """For its detector to be loaded and the model to come free."""
    model_ms: float
    """Of the whole batch it was scored in."""
    judge_ms: float
    """Pictures included."""


@dataclass(frozen=True)
class Scored:
    """All that is answered of one image."""

    served: ServedCheckpoint
    verdict: Verdict
    width: int
    height: int
    frame: Frame
    """What the map covers of the image."""
    timings: Timings
    map_png: bytes | None
    overlay_png: bytes | None


class ScoringService:
    """A bank of detectors behind a batch loop, and the table of what is served. Must be made inside an event loop."""

    def __init__(self, config: ServeConfig, replica: str = "") -> None:
        self.config = config
        self.access = Access(config)
        self.metrics = Metrics(replica)
        self.room = Room(config.max_waiting)
        self._registry = Registry(Storage(config.registry, config.storage_options, _PATIENCE))
        device = prepared_device(config.cluster.resources.gpu)
        self._bank = self._registry.bank(config.capacity_mb * 2**20, device, config.runtime)
        self.checkpoints = ServedCheckpoints(self._registry, self._check, self.metrics.reloaded)
        self._loading = Loading(self._bank)
        self._batcher: Batcher[tuple[LoadedDetector, Image], Finding] = Batcher(
            self._score_batch, config.batch_size, self.metrics.batch_images.observe
        )
        # Few, as more would only take turns; apart, as what is scored should not wait for what came later.
        threads = max(_LEAST_THREADS, math.ceil(config.cluster.resources.cpu))
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decoding")
        self._judging = ThreadPoolExecutor(threads, thread_name_prefix="judging")
        self._following = asyncio.create_task(self._follow())
        self._watch()

    async def score(self, served: ServedCheckpoint, content: bytes, wishes: Wishes) -> Scored:
        """The verdict on an image by the checkpoint that its request was admitted with.

        Raises ImageError, and CheckpointError or StorageError where the checkpoint cannot be loaded.
        """
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        detector_input = served.manifest.detector.input
        image = await loop.run_in_executor(self._decoding, prepare, content, detector_input, self.config.max_pixels)
        decoded = time.perf_counter()
        held = await self._loading.ready(served.key)
        loaded = time.perf_counter()
        answered = await self._batcher.submit((held, image.pixels_3HW))
        found = time.perf_counter()
        verdict, map_png, overlay_png = await loop.run_in_executor(
            self._judging, self._judge, served, content, image, answered.result, wishes
        )
        timings = Timings(
            decode_ms=1000 * (decoded - start),
            wait_ms=1000 * (loaded - decoded + answered.waited),
            model_ms=1000 * answered.worked,
            judge_ms=1000 * (time.perf_counter() - found),
        )
        self._count(served, verdict, timings)
        return Scored(served, verdict, image.width, image.height, image.frame, timings, map_png, overlay_png)

    @property
    def problem(self) -> str | None:
        """Why the service is degraded; None if it is not."""
        return self.checkpoints.problem or self.access.problem

    async def pointer(self, served: ServedCheckpoint) -> tuple[Pointer, list[str]]:
        """What the registry says of a category: its pointer and all its finished versions, oldest first."""
        category = served.manifest.category
        pointer = await asyncio.to_thread(self._registry.pointer, category)
        return pointer, await asyncio.to_thread(self._registry.versions, category)

    async def promote(self, served: ServedCheckpoint, version: str) -> None:
        """Make a version the one that serves; CheckpointError and no change where it is not there or does not load."""
        category = served.manifest.category
        await asyncio.to_thread(self._promote, category, version)

    async def rollback(self, served: ServedCheckpoint) -> None:
        """The version before serves again; CheckpointError where there is none."""
        await asyncio.to_thread(self._registry.rollback, served.manifest.category)
        await asyncio.to_thread(self.checkpoints.refresh)

    async def close(self) -> None:
        """Stop all that runs."""
        self._following.cancel()
        await self._batcher.close()
        self._loading.close()
        for threads in (self._decoding, self._judging):
            threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, key: CheckpointKey) -> None:
        """Make sure that a version can score: in the bank where its category is in use, else only by reading it.

        So a night's promotions of hundreds of categories do not push those in use out of the bank.
        """
        if any(category == key[0] for category, _ in self._bank.loaded):
            self._bank.load(key)
        else:
            self._registry.detector(*key)

    def _promote(self, category: str, version: str) -> None:
        version = self._registry.resolve(category, version)
        self._check((category, version))
        self._registry.promote(category, version)
        self.checkpoints.refresh()

    def _judge(
        self, served: ServedCheckpoint, content: bytes, image: PreparedImage, finding: Finding, wishes: Wishes
    ) -> tuple[Verdict, bytes | None, bytes | None]:
        target_fpr = wishes.target_fpr or served.manifest.detector.target_fpr
        verdict = judge(finding.score, finding.map_HW, served.calibration, target_fpr, image.frame)
        map_png = map_picture(finding.map_HW, image) if wishes.map else None
        overlay_png = None
        if wishes.overlay:
            overlay_png = overlay_picture(content, image, finding.map_HW, verdict.threshold, self.config.max_pixels)
        return verdict, map_png, overlay_png

    def _score_batch(self, items: Sequence[tuple[LoadedDetector, Image]]) -> list[Finding]:
        return self._bank.score_loaded([image for _, image in items], [held for held, _ in items])

    def _count(self, served: ServedCheckpoint, verdict: Verdict, timings: Timings) -> None:
        category = served.manifest.category
        for stage in ("decode", "wait", "model", "judge"):
            self.metrics.stage_seconds.labels(stage).observe(getattr(timings, f"{stage}_ms") / 1000)
        self.metrics.images.labels(category).inc()
        self.metrics.anomalies.labels(category).inc(verdict.is_anomaly)
        self.metrics.scores.labels(category).observe(verdict.score)
        self.metrics.p_values.labels(category).observe(verdict.p_value)

    def _watch(self) -> None:
        self.metrics.watch(
            images_in_hand=lambda: self.room.taken,
            images_waiting=lambda: self._batcher.waiting,
            detectors_loaded=lambda: len(self._bank.loaded),
            detector_bytes=lambda: self._bank.bytes,
            categories_served=lambda: len(self.checkpoints.all()),
            checkpoints_refused=lambda: self.checkpoints.refused,
            registry_reachable=lambda: float(self.checkpoints.problem is None),
        )

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload_seconds)
            for refresh in (self.checkpoints.refresh, self.access.refresh):
                try:
                    await asyncio.to_thread(refresh)
                except Exception:  # a bug there must not end the following of all categories
                    log.exception("following the registry failed")
