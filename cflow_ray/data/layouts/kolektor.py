"""KolektorSDD and KolektorSDD2: one category, a mask beside every image, and labels that only the masks tell."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cflow_ray.config import DataConfig
from cflow_ray.data.images import has_defect
from cflow_ray.data.layouts.tree import GOOD, Masks, existing_root, images_below, only_category, stem
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample
from cflow_ray.errors import DataError, ImageError
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

_TEST_EVERY = 3
"""Every third item tests, a share as in the threefold evaluation of the data set's paper."""


def read_kolektor_sdd(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`kosNN/PartN.jpg` with `kosNN/PartN_label.bmp`; an all-zero mask is a normal image's.

    There is no official split. A folder is one item photographed in parts, so the split is by folder: in order of their
    names the first, fourth, seventh ... test, the others train. Defective parts of the latter are left out.
    """
    root = existing_root(config, storage_options)
    masks, images = Masks(root), list[tuple[str, str]]()
    for path in images_below(root):
        match path.split("/"):
            case [folder, name] if stem(name).lower().endswith("_label"):
                masks.add(path, folder, stem(name)[: -len("_label")])
            case [folder, _]:
                images.append((path, folder))
    held = set(sorted({folder for _, folder in images})[::_TEST_EVERY])
    category = only_category(config, root)
    samples = [
        Sample(path, category, TEST if folder in held else TRAIN, None, mask=masks.take(folder, stem(path)))
        for path, folder in images
    ]
    return DataSet(root, _labelled(root, samples), masks.left)


def read_kolektor_sdd2(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`train/NNNNN.png` and `test/NNNNN.png` with `<stem>_GT.png` beside them; an all-zero mask is a normal image's.

    Defective training images (246 of the official ones) are left out.
    """
    root = existing_root(config, storage_options)
    masks, images = Masks(root), list[tuple[str, str]]()
    for path in images_below(root):
        match path.split("/"):
            case ["train" | "test" as split, name] if stem(name).upper().endswith("_GT"):
                masks.add(path, split, stem(name)[: -len("_GT")])
            case ["train" | "test" as split, _]:
                images.append((path, split))
    category = only_category(config, root)
    samples = [Sample(path, category, split, None, mask=masks.take(split, stem(path))) for path, split in images]
    return DataSet(root, _labelled(root, samples), masks.left)


def _labelled(root: Storage, samples: list[Sample]) -> list[Sample]:
    """Samples with the labels that their masks tell, without the defective among the training images."""
    labelled = list(computed_ahead(lambda sample: _judged(root, sample), samples))
    kept = [sample for sample in labelled if not (sample.split == TRAIN and sample.label == 1)]
    if len(kept) < len(labelled):
        log.info("%s: %d defective training images are left out", root.uri, len(labelled) - len(kept))
    return kept


def _judged(root: Storage, sample: Sample) -> Sample:
    if sample.mask is None:
        raise DataError(f"{root.join(sample.image)} has no mask beside it, which tells whether it is good; add it.")
    try:
        defective = has_defect(root.read(sample.mask))
    except ImageError as error:
        raise DataError(f"the mask {root.join(sample.mask)} cannot be used: {error}") from error
    if defective:
        return replace(sample, label=1, defect="defect")
    return replace(sample, label=0, defect=GOOD, mask=None)
