"""A look at every file of a data set before a fit: what cannot be read, what is there twice, what does not fit."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from cflow_ray.config import CheckConfig
from cflow_ray.data.datasets import read_as_found
from cflow_ray.data.findings import CategoryFigures, CheckReport, Finding, Kind
from cflow_ray.data.images import ImageFacts, examine
from cflow_ray.data.layouts.table import save_table
from cflow_ray.data.layouts.tree import mask_files
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample, spelled_alike
from cflow_ray.errors import ImageError
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.storage import Storage

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Look:
    """What is seen of one sample's files; no pixels are kept."""

    sample: Sample
    digest: bytes | None
    """SHA-256 of the file; None where there is none."""
    image: ImageFacts | ImageError
    masks: Mapping[str, ImageFacts | ImageError]
    """By path."""


def check(config: CheckConfig, progress: Progress = lambda done, total: None) -> CheckReport:
    """Check a data set, and write its sample table where that is asked for."""
    found = read_as_found(config, config.storage_options)
    chosen = set(found.chosen(config.only))
    data_set = replace(found, samples=[sample for sample in found.samples if sample.category in chosen])
    report = check_data_set(data_set, progress)
    if config.write_table:
        save_table(data_set, config.write_table, config.storage_options)
    return report


def check_data_set(data_set: DataSet, progress: Progress = lambda done, total: None) -> CheckReport:
    """Read every image and mask once, a few at a time.

    Raises StorageError where the storage cannot be reached; a file that is not there is a finding.
    """
    figures: dict[str, CategoryFigures] = {name: CategoryFigures() for name in data_set.categories}
    by_digest: dict[bytes, list[Sample]] = defaultdict(list)
    findings = [Finding("masks_without_image", None, (mask,)) for mask in data_set.stray_masks]
    samples = sorted(data_set.samples, key=lambda sample: (sample.category, sample.image))
    for number, look in enumerate(computed_ahead(partial(look_at, data_set.root), samples), start=1):
        facts = None if isinstance(look.image, ImageError) else look.image
        figures[look.sample.category].add(look.sample, facts)
        if facts is not None and look.digest is not None:
            by_digest[look.digest].append(look.sample)
        findings += _findings_of(look)
        progress(number, len(samples))
    for group in by_digest.values():
        findings += _repeats(group)
    findings += _untrained(data_set) + similar_categories(data_set.categories)
    order = {kind: position for position, kind in enumerate(get_args(Kind))}
    findings.sort(key=lambda finding: (order[finding.kind], finding.category or "", finding.subjects))
    return CheckReport(data_set.root.uri, figures, findings)


def look_at(root: Storage, sample: Sample) -> Look:
    """Read a sample's image and masks and decode them whole."""
    content = root.read_if_there(sample.image)
    digest = None if content is None else hashlib.sha256(content).digest()
    # An empty folder of masks is looked at as a file, which does not exist.
    masks = (mask_files(root, sample.mask) or [sample.mask]) if sample.mask else []
    return Look(sample, digest, _facts(content), {path: _facts(root.read_if_there(path)) for path in masks})


def similar_categories(names: Iterable[str]) -> list[Finding]:
    """Names that only spelling tells apart, which a fit refuses: `metal_nut` and `Metal nut`."""
    return [Finding("similar_categories", None, same) for same in spelled_alike(sorted(names))]


def _facts(content: bytes | None) -> ImageFacts | ImageError:
    if content is None:
        return ImageError("the file does not exist")
    try:
        return examine(content)
    except ImageError as error:
        return error


def _findings_of(look: Look) -> Iterator[Finding]:
    sample = look.sample
    if isinstance(look.image, ImageError):
        kind: Kind = "unreadable_training_images" if sample.split == TRAIN else "unreadable_images"
        yield Finding(kind, sample.category, (sample.image,), str(look.image))
    if sample.label == 1 and sample.split == TEST and sample.mask is None:
        yield Finding("anomalies_without_mask", sample.category, (sample.image,))
    for path, mask in look.masks.items():
        if isinstance(mask, ImageError):
            yield Finding("unreadable_masks", sample.category, (path,), str(mask))
        elif not isinstance(look.image, ImageError) and _size(mask) != _size(look.image):
            sizes = f"{_size(mask)}, but {sample.image} is {_size(look.image)}"
            yield Finding("mask_sizes", sample.category, (path,), sizes)


def _size(facts: ImageFacts) -> str:
    return f"{facts.width} x {facts.height}"


def _repeats(group: Sequence[Sample]) -> Iterator[Finding]:
    """What is wrong with samples of one content: leakage or duplicates in each category, and duplicates across."""
    by_category: dict[str, list[Sample]] = defaultdict(list)
    for sample in group:
        by_category[sample.category].append(sample)
    for category, samples in by_category.items():
        if len(samples) > 1:
            splits = {sample.split for sample in samples}
            kind: Kind = "leakage" if TRAIN in splits and len(splits) > 1 else "duplicates"
            yield Finding(kind, category, tuple(sample.image for sample in samples))
    if len(by_category) > 1:
        yield Finding("duplicates_across_categories", None, tuple(sample.image for sample in group))


def _untrained(data_set: DataSet) -> list[Finding]:
    trained = {sample.category for sample in data_set.samples if sample.split == TRAIN and sample.label != 1}
    return [
        Finding("no_training_images", name, (name,), "no normal image in its train split")
        for name in data_set.categories
        if name not in trained
    ]
