"""One category, from its images in storage to a promoted checkpoint in the registry; runs in a worker, without Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.data.images import PreparedImage, centre_window, decode_mask
from cflow_ray.data.normals import CategoryImages
from cflow_ray.data.samples import TEST, DataSet, Sample
from cflow_ray.data.scratch import FeatureCache
from cflow_ray.errors import CflowRayError, DataError, ImageError
from cflow_ray.evaluation.evaluate import LabelledFindings, read_mask
from cflow_ray.evaluation.metrics import Metrics
from cflow_ray.evaluation.report import heat_map_panel
from cflow_ray.model.augmentation import altered_copies
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.context import FitContext
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import Features
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.seeds import category_seed
from cflow_ray.store.checkpoint import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage, split_uri
from cflow_ray.store.weights import read_weights

_BATCH = 16

Report = Callable[[FitProgress], None]
"""Tells the run how far a category is."""


@dataclass(frozen=True)
class FitTask:
    """What a worker needs to know of one category."""

    category: str
    samples: tuple[Sample, ...]
    detector: DetectorConfig
    data_digest: str


@dataclass(frozen=True)
class FitSite:
    """Where a run reads and writes, the same for all its categories."""

    data_root: str
    registry: str
    storage_options: Mapping[str, Any]
    cache_bytes: int = 4 * 2**30
    """Memory of a worker for encoded features."""
    scratch: str | None = None
    """Folder of the node for the features beyond that."""


@dataclass(frozen=True)
class Outcome:
    """What became of a category."""

    category: str
    status: str
    """`fitted`, `reused` (a finished version of the same data and configuration was there) or `failed`."""
    version: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON: the metrics by name beside status, version, seconds, error and notes."""
        return {
            **self.metrics.as_dict(),
            "status": self.status,
            "version": self.version,
            "seconds": self.seconds,
            "error": self.error,
            "notes": list(self.notes),
        }


def fit_category(task: FitTask, site: FitSite, report: Report) -> Outcome:
    """Fit, evaluate, store and promote one category; an expected failure is an Outcome with its error."""
    start = time.monotonic()
    try:
        return _Fit(task, site).run(report, start)
    except CflowRayError as error:
        return Outcome(task.category, "failed", seconds=time.monotonic() - start, error=str(error))


class _Fit:
    """The steps of one category's fit around what they share."""

    def __init__(self, task: FitTask, site: FitSite) -> None:
        self._task = task
        self._site = site
        self._data = DataSet(Storage(site.data_root, site.storage_options), task.samples)
        self._registry = Registry(Storage(site.registry, site.storage_options))
        self._weights = read_weights(task.detector.encoder, site.storage_options)
        self._encoder = Encoder(task.detector.encoder, self._weights)
        self._images = CategoryImages(self._data.root, task.detector)

    def run(self, report: Report, start: float) -> Outcome:
        normals = self._data.normals(self._task.category)
        if not normals:
            raise DataError(f"{self._task.category!r} has no training image; add normal images to its train split.")
        region_HW = self._region()
        features = self._encoded(normals, region_HW)
        fitted = fit_detector(
            features,
            self._task.detector,
            self._seed,
            FitContext(lambda progress, _: report(progress)),
            region_HW,
        )
        detector = fitted.detector()
        findings, attachments = self._evaluate(detector)
        metrics = findings.metrics()
        seconds = round(time.monotonic() - start, 1)
        version = self._store(fitted, len(features), metrics, attachments, seconds)
        return Outcome(
            category=self._task.category,
            status="fitted",
            version=version,
            metrics=metrics,
            seconds=seconds,
            notes=(*self._images.unreadable, detector.calibration.support(detector.config.target_fpr)),
        )

    def _encoded(self, normals: Iterable[Sample], region_HW: Tensor | None) -> Features:
        draws = torch.Generator().manual_seed(self._seed)
        cache = FeatureCache(self._site.cache_bytes, self._site.scratch)
        return self._images.encoded(
            normals,
            self._encoder,
            lambda image_3HW: altered_copies(image_3HW, self._task.detector.augmentation, draws),
            cache.keep,
            region_HW,
        )

    def _region(self) -> Tensor | None:
        """The region of interest at the input's size; DataError where it is unreadable or empty."""
        config = self._task.detector
        if config.region is None:
            return None
        folder, name = split_uri(config.region)
        content = Storage(folder, self._site.storage_options).read(name)
        try:
            region_HW = decode_mask(content, config.size, centre_window(config.crop))
        except ImageError as error:
            raise DataError(f"the region of interest {config.region} cannot be used: {error}") from error
        if not region_HW.any():
            raise DataError(f"the region of interest {config.region} has no pixel above 0 inside the crop.")
        return torch.from_numpy(region_HW)

    @property
    def _seed(self) -> int:
        return category_seed(self._task.detector.seed, self._task.category)

    def _evaluate(self, detector: Detector) -> tuple[LabelledFindings, dict[str, bytes]]:
        """Score the test images as the archive job would.

        Beside the findings come files for the checkpoint: every test image's score, and a picture of the highest.
        """
        bank = DetectorBank[str](lambda _: detector, lambda *_: self._encoder)
        findings, scores, preview = LabelledFindings(self._data.root), dict[str, float](), None
        for group in _groups(self._images.readable(self._data.of(self._task.category, TEST))):
            found = bank.score_batch([image.pixels_3HW for _, image in group], [self._task.category] * len(group))
            for (sample, image), finding in zip(group, found, strict=True):
                findings.add(sample, finding.score, finding.map_HW, image.window)
                if preview is None or finding.score > max(scores.values()):
                    preview = self._preview(detector, sample, image, finding)
                scores[sample.image] = finding.score
        attachments = {"test_scores.json": json.dumps(scores, indent=1).encode()}
        return findings, attachments | ({"preview.png": preview} if preview else {})

    def _preview(self, detector: Detector, sample: Sample, image: PreparedImage, finding: Finding) -> bytes:
        return heat_map_panel(
            image.pixels_3HW.permute(1, 2, 0).numpy(),
            finding.map_HW,
            detector.calibration.scores[-1],
            read_mask(self._data.root, sample, finding.map_HW.shape, image.window),
            f"{sample.image}  score {finding.score:.4f}",
        )

    def _store(
        self, fitted: Fitted, images: int, metrics: Metrics, attachments: Mapping[str, bytes], seconds: float
    ) -> str:
        encoder_digest = self._registry.add_encoder(self._weights)

        def describe(version: str) -> Manifest:
            return Manifest(
                category=self._task.category,
                version=version,
                detector=self._task.detector,
                encoder_digest=encoder_digest,
                channels=self._encoder.channels,
                peaks=fitted.calibration.peaks,
                calibration_scores=fitted.calibration.scores,
                metrics=metrics.as_dict(),
                training_images=images,
                seed=self._seed,
                data_digest=self._task.data_digest,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                fit_seconds=seconds,
            )

        version = self._registry.add(self._task.category, fitted, describe, attachments)
        self._registry.promote(self._task.category, version)
        return version


def _groups(images: Iterable[tuple[Sample, PreparedImage]]) -> Iterator[list[tuple[Sample, PreparedImage]]]:
    group: list[tuple[Sample, PreparedImage]] = []
    for item in images:
        group.append(item)
        if len(group) == _BATCH:
            yield group
            group = []
    if group:
        yield group
