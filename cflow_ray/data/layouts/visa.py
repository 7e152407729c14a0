"""VisA: images in folders, split and labels in a table beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from cflow_ray.config import DataConfig
from cflow_ray.data.layouts.tree import GOOD, existing_root, inside
from cflow_ray.data.samples import DataSet, Sample
from cflow_ray.errors import DataError

SPLIT_FILE = "split_csv/1cls.csv"
_COLUMNS = ("object", "split", "label", "image", "mask")
_LABELS = {"normal": 0, "anomaly": 1}


def read_visa(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """The rows of `split_csv/1cls.csv`, the official split for a model per category.

    Its columns are object, split, label, image and mask. The masks hold numbers of defect classes: every value above 0
    is defect.
    """
    root = existing_root(config, storage_options)
    content = root.read_if_there(SPLIT_FILE)
    if content is None:
        raise DataError(f"{root.uri} has no {SPLIT_FILE}, which says what VisA trains and tests on; add it.")
    place = root.join(SPLIT_FILE)
    return DataSet(root, [_sample(row, number, place) for number, row in enumerate(_rows(content, place), start=1)])


def _rows(content: bytes, place: str) -> list[dict[str, str]]:
    try:
        text = content.decode("utf-8-sig")  # some copies start with a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is no text: {error}") from error
    reader = csv.DictReader(io.StringIO(text), restval="")
    absent = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if absent:
        raise DataError(f"{place} lacks the columns {absent}; it has {list(reader.fieldnames or ())}.")
    return list(reader)


def _sample(row: Mapping[str, str], number: int, place: str) -> Sample:
    where = f"row {number} of {place}"
    if row["label"] not in _LABELS:
        raise DataError(f"{where} has label {row['label']!r}; allowed are {', '.join(_LABELS)}.")
    if not (row["object"] and row["split"] and row["image"]):
        raise DataError(f"{where} has no object, split or image.")
    label, image = _LABELS[row["label"]], inside(row["image"], where)
    mask = inside(row["mask"], where) if label and row["mask"] else None
    return Sample(image, row["object"], row["split"], label, row["label"] if label else GOOD, mask)
