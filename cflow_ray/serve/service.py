"""What one replica does: decode, score in batches, judge; the same decoding and bank as the archive job."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torch import Tensor

from cflow_ray.config import ServeConfig
from cflow_ray.data.images import prepare
from cflow_ray.model.detector import Finding
from cflow_ray.model.scoring import Verdict, judge
from cflow_ray.serve.batching import Batcher
from cflow_ray.serve.checkpoints import ServedCheckpoint, ServedCheckpoints
from cflow_ray.store.patience import Patience
from cflow_ray.store.registry import CheckpointKey, Registry
from cflow_ray.store.storage import Storage

_PATIENCE = Patience(seconds=5)  # requests of every category wait behind the loading of one


class ScoringService:
    """A bank of detectors behind a batch loop, and the table of what is served. Must be made inside an event loop."""

    def __init__(self, config_json: str) -> None:
        self.config = ServeConfig.model_validate_json(config_json)
        registry = Registry(Storage(self.config.registry, self.config.storage_options, _PATIENCE))
        self._bank = registry.bank(self.config.capacity_mb * 2**20, runtime=self.config.runtime)
        self.checkpoints = ServedCheckpoints(registry, self._bank)
        self._batcher: Batcher[tuple[CheckpointKey, Tensor], Finding] = Batcher(
            self._score_batch, self.config.batch_size, self.config.max_waiting
        )
        self._reloading = asyncio.create_task(self._reload())

    async def score(self, category: str, content: bytes) -> tuple[ServedCheckpoint, Verdict, tuple[int, int]]:
        """The checkpoint that answered, its verdict, and the image's width and height.

        Raises CheckpointError for a category that is not served, ImageError, and OverloadedError.
        """
        served = self.checkpoints[category]
        image = await asyncio.to_thread(prepare, content, served.manifest.detector.input)
        finding = await self._batcher.submit((served.key, image.pixels_3HW))
        calibration, target_fpr = served.calibration, served.manifest.detector.target_fpr
        verdict = await asyncio.to_thread(judge, finding.score, finding.map_HW, calibration, target_fpr, image.frame)
        return served, verdict, (image.width, image.height)

    def _score_batch(self, items: Sequence[tuple[CheckpointKey, Tensor]]) -> list[Finding]:
        return self._bank.score_batch([image for _, image in items], [key for key, _ in items])

    async def _reload(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload_seconds)
            await asyncio.to_thread(self.checkpoints.refresh)
