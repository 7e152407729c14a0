"""Real-IAD: a JSON file a category lists its images, of five views a product, below a folder per resolution."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cflow_ray.config import DataConfig
from cflow_ray.data.layouts.tree import GOOD, existing_root, inside, stem
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample
from cflow_ray.errors import DataError
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.storage import Storage

LISTS = "realiad_jsons"


def read_real_iad(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`realiad_jsons/<category>.json`: `meta.prefix` and `meta.normal_class`, then `train` and `test`.

    Images lie below the root or, as they are published, below `realiad_<side>`; of several sides the largest is taken.
    Each view is a sample of its own, labelled by what can be seen in it: views of a defective product that do not show
    the defect are good and have no mask.
    """
    root = existing_root(config, storage_options)
    folder = _folder_of_images(root)
    by_list = computed_ahead(lambda path: _samples(root, path, folder), _lists(root))
    return DataSet(root, [sample for samples in by_list for sample in samples])


def _lists(root: Storage) -> list[str]:
    """The JSON files of the official split; their archive has folders of other splits beside it."""
    below = f"{LISTS}/{LISTS}" if LISTS in root.folders(LISTS) else LISTS
    return [
        path for path in root.files(below) if path.lower().endswith(".json") and path.count("/") == below.count("/") + 1
    ]


def _folder_of_images(root: Storage) -> str:
    sides = [int(match[1]) for name in root.folders() if (match := re.fullmatch(r"realiad_(\d+)", name))]
    return f"realiad_{max(sides)}/" if sides else ""


def _samples(root: Storage, path: str, folder: str) -> list[Sample]:
    try:
        content = json.loads(root.read(path))
        start = folder + content["meta"]["prefix"]
        normal = content["meta"]["normal_class"]
        entries = [(split, entry) for split in (TRAIN, TEST) for entry in content[split]]
        return [_sample(start, normal, (stem(path), split), entry, root.join(path)) for split, entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{root.join(path)} is no list of Real-IAD ({reason}); it needs meta.prefix, meta.normal_class, train and "
            "test with image_path, mask_path and anomaly_class."
        ) from error


def _sample(start: str, normal: str, place: tuple[str, str], entry: Mapping[str, Any], where: str) -> Sample:
    category, split = place
    image = inside(start + entry["image_path"], where)
    if entry["anomaly_class"] == normal:
        return Sample(image, category, split, 0, GOOD)
    mask = inside(start + entry["mask_path"], where) if entry.get("mask_path") else None
    return Sample(image, category, split, 1, entry["anomaly_class"], mask)
