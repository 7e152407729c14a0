"""One category, from its images in storage to checkpoints in the registry; runs in a worker, without Ray."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import compress
from statistics import fmean

import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.data.images import centre_window, decode_mask
from cflow_ray.data.normals import CategoryImages
from cflow_ray.data.samples import TEST, DataSet, Sample
from cflow_ray.data.scratch import FeatureCache
from cflow_ray.errors import CflowRayError, DataError, ImageError
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.model.augmentation import altered_copies
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.calibration import held_out_likelihood
from cflow_ray.model.context import FitContext, Savepoints, SharedSavepoints
from cflow_ray.model.detector import Detector
from cflow_ray.model.device import prepared_device
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.encoder_model import EncoderModel
from cflow_ray.model.features import Features
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.flow import Decoder
from cflow_ray.model.partition import Split, splits_of
from cflow_ray.model.pooling import pooled
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.runtime_choice import fast_encoder, fastest_runtime
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.seeds import category_seed
from cflow_ray.model.team import SOLO, Team, share_of
from cflow_ray.store.digest import digest
from cflow_ray.store.manifest import Manifest, installed_packages
from cflow_ray.store.registry import Registry
from cflow_ray.store.savepoints import StoredSavepoints
from cflow_ray.store.storage import Storage, read_file
from cflow_ray.store.weights import read_weights
from cflow_ray.train.curves import Curves
from cflow_ray.train.deterministic import deterministic_algorithms
from cflow_ray.train.likelihood import likeliest, mean_nll
from cflow_ray.train.memory import PeakMemory
from cflow_ray.train.progress import CategoryMeter, CategoryProgress
from cflow_ray.train.promotion import promote
from cflow_ray.train.task import FitSite, FitTask, Outcome
from cflow_ray.train.testing import score_test_images

_SAVEPOINTS = "_savepoints"
_SAVEPOINT_FORMAT = 10  # of the states, and of what a recipe does

Report = Callable[[CategoryProgress], None]
"""Tells the run how far a category is."""


def fit_category(task: FitTask, site: FitSite, report: Report, team: Team = SOLO) -> Outcome:
    """Fit, evaluate, store and promote one category; an expected failure is an Outcome with its error.

    In a team the first member does so with the others' help; their own outcome has neither version nor figures.
    """
    start, memory = time.monotonic(), PeakMemory()
    try:
        with deterministic_algorithms(task.detector.deterministic):
            outcome = _Fit(task, site, report, team).run()
    except CflowRayError as error:
        seconds = round(time.monotonic() - start, 1)
        outcome = Outcome(task.category, "failed", seconds=seconds, error=str(error))
    return replace(outcome, peak_mb=memory.peak_mb())


class _Fit:
    """The steps of one category's fits around what they share."""

    def __init__(self, task: FitTask, site: FitSite, report: Report, team: Team) -> None:
        self._task = task
        self._site = site
        self._report = report
        self._team = team
        self._is_first = team.rank == 0
        self._start = time.monotonic()
        self._data = DataSet(Storage(site.data_root, site.storage_options), task.samples)
        self._registry = Registry(Storage(site.registry, site.storage_options))
        self._weights = read_weights(task.detector.encoder, site.storage_options)
        self._device = prepared_device(site.gpus)
        self._encoder = Encoder(task.detector.encoder, self._weights).to(self._device)
        self._encoder_digest = digest(self._weights)
        self._images = CategoryImages(self._data.root, task.detector)

    def run(self) -> Outcome:
        """The outcome of the seed with the best held-out likelihood; the versions of all of them are kept."""
        normals = self._data.normals(self._task.category)
        if not normals:
            raise DataError(f"{self._task.category!r} has no training image; add normal images to its train split.")
        self._encoder.check_size(self._task.detector.size)
        meter = CategoryMeter(len(share_of(normals, self._team)), self._task.seeds)
        region_HW = self._region()
        features = self._encoded(normals, region_HW, meter)
        splits = splits_of(len(features), self._task.detector, self._shared_seed)
        manifests = list(self._fits(features, region_HW, splits, meter))
        if not self._is_first:
            return Outcome(self._task.category, "fitted")
        best = likeliest(manifests)
        nll_of = partial(self._nll, features, splits[-1].selection, region_HW)
        promoted, reason = promote(self._registry, self._task.category, best.version, self._site.promote, nll_of)
        seconds = sum(manifest.fit_seconds for manifest in manifests)
        return replace(self._outcome(best, promoted, reason), seconds=round(seconds, 1))

    def _nll(self, features: Features, held_out: Sequence[int], region_HW: Tensor | None, version: str) -> float:
        """Of the held-out images under a version, mean of the levels."""
        decoders = self._registry.fitted(self._task.category, version).decoders
        return fmean(held_out_likelihood(decoders, features, held_out, region_HW).nll)

    def _fits(
        self, features: Features, region_HW: Tensor | None, splits: Sequence[Split], meter: CategoryMeter
    ) -> Iterator[Manifest]:
        """The version of every seed; of a team only the first member stores any."""
        start = self._start
        for number, detector in enumerate(self._task.detectors()):
            if (finished := self._finished(detector)) is not None:
                yield finished
                continue
            with self._savepoints(detector) as savepoints, self._watch(meter, number, features) as watch:
                context = FitContext(watch, savepoints, self._team, self._device)
                fitted = fit_detector(features, detector, self._seed(detector), context, region_HW, splits)
                if self._is_first:
                    yield self._store(fitted, len(features), start, partial(self._report_tested, meter, number))
            start = time.monotonic()

    def _finished(self, detector: DetectorConfig) -> Manifest | None:
        """The version of one of several seeds, where an earlier run that was cut off has it."""
        if self._task.seeds == 1 or self._site.force:
            return None
        found = self._registry.finished(self._task.category, self._task.data_digest, detector)
        return self._team.gather(found)[0]  # the first member may have finished one since another looked

    def _seed(self, detector: DetectorConfig) -> int:
        return category_seed(detector.seed, self._task.category)

    @property
    def _shared_seed(self) -> int:
        """Draws what the fits of all seeds share: which images are held out, and how copies are altered."""
        detector = self._task.detector
        return category_seed(detector.seed if detector.split_seed is None else detector.split_seed, self._task.category)

    def _encoded(self, normals: Sequence[Sample], region_HW: Tensor | None, meter: CategoryMeter) -> Features:
        """Features of the readable images, of which every member of the team reads and encodes a share."""
        cache = FeatureCache(self._site.cache_bytes, self._site.scratch)

        def copies(image_3HW: Tensor) -> list[Tensor]:
            self._report(meter.encoded())
            return altered_copies(image_3HW, self._task.detector.augmentation, self._shared_seed)

        share, size = share_of(normals, self._team), self._task.detector.size
        with fast_encoder(self._encoder, self._encoder_model(), size, self._device) as encoder:
            own = self._images.encoded(share, encoder, copies, cache.keep, region_HW)
        for notes in self._team.gather(self._images.unreadable):
            self._images.unreadable |= notes
        ranks = [number % self._team.size for number in range(len(normals))]
        readable = [sample.image not in self._images.unreadable for sample in normals]
        return pooled(own, list(compress(ranks, readable)), self._team, cache.keep)

    def _encoder_model(self) -> EncoderModel | None:
        """The encoder's model in the registry, where the first member keeps it for all that score with it."""
        size, model = self._task.detector.size, None
        if self._is_first:
            model = self._registry.add_encoder_model(self._encoder, self._encoder_digest, size)
        self._team.gather(None)  # the others find it now
        if self._is_first:
            return model
        return self._registry.encoder_model(self._encoder.config, self._encoder_digest, size)

    def _region(self) -> Tensor | None:
        """The region of interest at the input's size; DataError where it is unreadable or empty."""
        config = self._task.detector
        if config.region is None:
            return None
        content = read_file(config.region, self._site.storage_options)
        try:
            region_HW = decode_mask(content, config.size, centre_window(config.crop))
        except ImageError as error:
            raise DataError(f"the region of interest {config.region} cannot be used: {error}") from error
        if not region_HW.any():
            raise DataError(f"the region of interest {config.region} has no pixel above 0 inside the crop.")
        return torch.from_numpy(region_HW)

    @contextmanager
    def _watch(
        self, meter: CategoryMeter, number: int, features: Features
    ) -> Iterator[Callable[[FitProgress, Decoder], None]]:
        """Reports the looks at the fit of one seed, and draws them; in a team that is for the first member to do."""
        if not self._is_first:
            yield lambda progress, decoder: None
            return
        folder = self._registry.storage.child(f"_runs/{self._site.run}/tensorboard/{self._task.category}")
        curves = Curves(folder, self._site.save_seconds)
        seed = self._task.detector.seed + number if self._task.seeds > 1 else None

        def watch(progress: FitProgress, _: Decoder) -> None:
            self._report(meter.stepped(number, progress))
            rows = features.levels[progress.level].size[0]
            curves.add(progress, self._task.detector.stride(progress.level, rows), seed)

        try:
            yield watch
        finally:
            curves.write()

    @contextmanager
    def _savepoints(self, detector: DetectorConfig) -> Iterator[Savepoints]:
        """The savepoints of one fit, which the first member of a team keeps; they go once its version is there.

        Their folder is named by all that decides the weights, package versions and kind of device included.
        """
        identity = hashlib.sha256(self._task.data_digest.encode() + detector.model_dump_json().encode())
        device = torch.device(self._device).type
        packages = sorted(installed_packages().items())
        identity.update(repr((_SAVEPOINT_FORMAT, self._encoder_digest, device, packages)).encode())
        folder = f"{_SAVEPOINTS}/{self._task.category}/{identity.hexdigest()[:16]}"
        seconds = self._site.save_seconds if self._is_first else 0
        savepoints = StoredSavepoints(self._registry.storage.child(folder), seconds)
        yield SharedSavepoints(savepoints, self._team)
        if self._is_first:
            savepoints.forget()

    def _store(self, fitted: Fitted, images: int, start: float, tested: Callable[[int], None]) -> Manifest:
        """Evaluate and write a version; its manifest. Images were first read or, for a later seed, fitted at `start`."""
        test_images = self._images.readable(self._data.of(self._task.category, TEST))
        bank = self._bank(fitted.detector())
        findings, attachments = score_test_images(bank, self._task.category, self._data.root, test_images, tested)
        self._registry.add_encoder(self._weights)

        def describe(version: str) -> Manifest:
            return Manifest(
                category=self._task.category,
                version=version,
                detector=fitted.config,
                encoder_digest=self._encoder_digest,
                channels=self._encoder.channels,
                peaks=fitted.calibration.peaks,
                calibration_scores=fitted.calibration.scores,
                nll=fitted.nll,
                metrics=findings.metrics().as_dict(),
                training_images=images,
                seed=self._seed(fitted.config),
                data_digest=self._task.data_digest,
                weights_data_digest=self._task.images_digest,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                fit_seconds=round(time.monotonic() - start, 1),
            )

        version = self._registry.add(self._task.category, fitted, describe, attachments)
        return self._registry.manifest(self._task.category, version)

    def _bank(self, detector: Detector) -> DetectorBank[str]:
        """A bank with the new detector, which scores by the runtime that users get unless they name another."""
        return DetectorBank(
            lambda _: detector,
            lambda *_: self._encoder,
            device=self._device,
            runtime=fastest_runtime(self._device),
            load_model=lambda config, _, size: self._registry.encoder_model(config, self._encoder_digest, size),
        )

    def _report_tested(self, meter: CategoryMeter, number: int, images: int) -> None:
        if of_images := len(self._data.of(self._task.category, TEST)):
            self._report(meter.tested(number, images, of_images))

    def _outcome(self, best: Manifest, promoted: bool, reason: str) -> Outcome:
        support = Calibration.of(best.peaks, best.calibration_scores).support(best.detector.target_fpr)
        return Outcome(
            category=self._task.category,
            status="fitted",
            version=best.version,
            metrics=Metrics.from_dict(best.metrics),
            nll=mean_nll(best),
            promoted=promoted,
            notes=(*self._images.unreadable.values(), support, *([reason] if reason else [])),
        )
