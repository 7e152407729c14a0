"""Metrics of findings against a data set's labels and masks: for the fit's own test images and for a score table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cflow_ray.config import EvaluateConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import WHOLE, Window, as_window, decode_map, decode_mask
from cflow_ray.data.layouts.tree import mask_files
from cflow_ray.data.samples import TEST, DataSet, Sample
from cflow_ray.errors import DataError, ImageError
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.evaluation.metrics import compute_metrics
from cflow_ray.store.results import read_maps, read_results
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)


@dataclass
class LabelledFindings:
    """Scores, maps and truth of one category's labelled images, gathered one by one."""

    root: Storage
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    maps: list[NDArray[np.float32] | None] = field(default_factory=list)
    masks: list[NDArray[np.bool_] | None] = field(default_factory=list)

    def add(self, sample: Sample, score: float, map_HW: NDArray[np.float32] | None, window: Window = WHOLE) -> None:
        """Take in a labelled image; its mask is read at the map's size, in the window that the map covers.

        An unreadable mask is a DataError.
        """
        if sample.label is None:
            return
        self.scores.append(score)
        self.labels.append(sample.label)
        self.maps.append(map_HW)
        self.masks.append(None if map_HW is None else read_mask(self.root, sample, map_HW.shape, window))

    def metrics(self) -> Metrics:
        """The figures of what was gathered."""
        return compute_metrics(self.scores, self.labels, self.maps, self.masks)


def read_mask(root: Storage, sample: Sample, size: tuple[int, ...], window: Window = WHOLE) -> NDArray[np.bool_] | None:
    """A window of the defect mask of a sample at size (H, W): empty for a good one, None for an anomaly without mask.

    A folder of masks is their union.
    """
    if sample.label == 0:
        return np.zeros(size, dtype=bool)
    if sample.mask is None:
        return None
    files = mask_files(root, sample.mask)
    if not files:
        raise DataError(f"the folder of masks {root.join(sample.mask)} holds no image; add them or leave out the mask.")
    try:
        masks_MHW = np.stack([decode_mask(root.read(file), (size[0], size[1]), window) for file in files])
        return np.asarray(masks_MHW.any(axis=0), dtype=bool)
    except ImageError as error:
        raise DataError(f"the mask {root.join(sample.mask)} cannot be used: {error}") from error


def evaluate(
    config: EvaluateConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Metrics]:
    """Metrics by category of a score table whose keys are the data set's image paths.

    Rows with `error`, of another image than those to test on, without a sample of that path, or without label do not
    count; of several rows of one image the first does. Labelled test images that have no score are warned of. Raises
    DataError where no row is of a test image.
    """
    data_set = read_data_set(config, config.storage_options)
    wanted = set(data_set.chosen(config.only))
    results = Storage(config.results, config.storage_options)
    rows = read_results(results).to_pylist()
    by_path = {
        sample.image: sample for sample in data_set.samples if sample.category in wanted and sample.split == TEST
    }
    known = _one_of_each([row for row in rows if row["error"] is None and row["key"] in by_path])
    if not known:
        raise DataError(
            f"no key of {config.results} is a test image of {config.data}; keys must be paths below the data's root."
        )
    found: dict[str, Metrics] = {}
    categories = sorted({by_path[row["key"]].category for row in known})
    for number, category in enumerate(categories, start=1):
        of_category = [row for row in known if by_path[row["key"]].category == category]
        _warn_of_missing(data_set.of(category, TEST), of_category)
        found[category] = _category_metrics(data_set, results, of_category, by_path)
        progress(number, len(categories))
    return found


def _one_of_each(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of every image, which two archives may hold."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["key"], row)
    if len(first) < len(rows):
        log.warning("%d rows repeat an image; the first of each counts", len(rows) - len(first))
    return list(first.values())


def _warn_of_missing(samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]]) -> None:
    """Of images whose row is missing or an error: without those that are hard to read, figures are too good."""
    scored = {row["key"] for row in rows}
    labelled = [sample for sample in samples if sample.label is not None]
    missing = [sample.image for sample in labelled if sample.image not in scored]
    if missing:
        log.warning(
            "%s: %d of %d labelled test images have no score and do not count, such as %s; score them first",
            labelled[0].category,
            len(missing),
            len(labelled),
            missing[0],
        )


def _category_metrics(
    data_set: DataSet, results: Storage, rows: Sequence[Mapping[str, Any]], by_path: Mapping[str, Sample]
) -> Metrics:
    findings = LabelledFindings(data_set.root)
    maps: dict[str, bytes] = {}
    open_tar: str | None = None
    for row in rows:
        if row["map"] is not None and row["map"] != open_tar:
            open_tar, maps = row["map"], read_maps(results, row["map"])
        key = row["key"]
        map_HW = decode_map(maps[key]) if row["map"] is not None else None
        window = as_window(tuple(row["frame"]), row["width"], row["height"])
        findings.add(by_path[key], row["score"], map_HW, window)
    return findings.metrics()
