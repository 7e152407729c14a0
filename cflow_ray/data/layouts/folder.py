"""One's own images in plain folders: normal ones to train on, others to test with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cflow_ray.config import DataConfig
from cflow_ray.data.layouts.tree import GOOD, Masks, existing_root, images_below, only_category, stem
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample
from cflow_ray.store.storage import Storage


def read_folder(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`normal_dir` trains; `normal_test_dir` and `abnormal_dir` test; `mask_dir` holds masks by stem of the abnormal."""
    root = existing_root(config, storage_options)
    category = only_category(config, root)
    masks = Masks(root)
    for path in _named(root, config.mask_dir):
        masks.add(path, stem(path).removesuffix("_mask"))
    samples = [Sample(path, category, TRAIN, 0, GOOD) for path in _named(root, config.normal_dir)]
    samples += [Sample(path, category, TEST, 0, GOOD) for path in _named(root, config.normal_test_dir)]
    for path in _named(root, config.abnormal_dir):
        samples.append(Sample(path, category, TEST, 1, config.abnormal_dir, masks.take(stem(path))))
    return DataSet(root, samples, masks.left)


def _named(root: Storage, folder: str | None) -> list[str]:
    return images_below(root, folder) if folder else []
