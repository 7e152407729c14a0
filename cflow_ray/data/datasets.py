"""Readers of data sets on disk or in object storage: each turns a layout into the sample table."""

from __future__ import annotations

import io
import posixpath
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cflow_ray.config import DataConfig
from cflow_ray.data.images import is_image_name
from cflow_ray.data.samples import TEST, TRAIN, DataSet, Sample
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.store.storage import Storage, split_uri

_TEXT = ("image", "category", "split", "defect", "mask")

Reader = Callable[[DataConfig, Mapping[str, Any]], DataSet]


def read_data_set(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """The data set of a configuration; raises DataError or StorageError where it is not there or breaks its layout."""
    data_set = READERS[config.layout](config, storage_options)
    if not data_set.samples:
        raise DataError(f"no image in {config.data} in layout {config.layout!r}; {_LAYOUTS[config.layout]}")
    return data_set


def _read_mvtec(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`<category>/train/good/*`, `<category>/test/<good|defect>/*`, `<category>/ground_truth/<defect>/<stem>_mask.png`."""
    root = _existing(config.data, storage_options)
    images: list[tuple[str, str, str]] = []  # (path, category, "split/kind")
    masks: dict[tuple[str, str, str], str] = {}  # (category, defect, stem) -> path
    for path in root.files():
        parts = path.split("/")
        if len(parts) != 4 or not is_image_name(path):
            continue
        category, split, kind, name = parts
        if split == "ground_truth":
            masks[category, kind, _stem(name).removesuffix("_mask")] = path
        elif split in (TRAIN, TEST):
            images.append((path, category, f"{split}/{kind}"))
    samples = [_mvtec_sample(path, category, place, masks) for path, category, place in images]
    if masks:
        first = masks[min(masks)]
        raise DataError(
            f"{len(masks)} masks without image in {root.uri}, first {first}; remove them or add the images."
        )
    return DataSet(root, samples)


def _mvtec_sample(path: str, category: str, place: str, masks: dict[tuple[str, str, str], str]) -> Sample:
    split, kind = place.split("/")
    mask = masks.pop((category, kind, _stem(path)), None)
    if kind == "good":
        return Sample(path, category, split, label=0, defect="good")
    return Sample(path, category, split, 1, kind, mask)


def _read_folder(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """`normal_dir` trains; `normal_test_dir` and `abnormal_dir` test; `mask_dir` holds masks by stem of the abnormal."""
    root = _existing(config.data, storage_options)
    category = config.only[0] if config.only else posixpath.basename(root.uri)
    masks: dict[str, str] = {}  # stem -> path
    for path in _images_below(root, config.mask_dir):
        if (other := masks.setdefault(_stem(path).removesuffix("_mask"), path)) != path:
            raise DataError(f"{other} and {path} in {root.uri} are masks of one name; rename them and their images.")
    samples = [Sample(path, category, TRAIN, 0, "good") for path in _images_below(root, config.normal_dir)]
    samples += [Sample(path, category, TEST, 0, "good") for path in _images_below(root, config.normal_test_dir)]
    for path in _images_below(root, config.abnormal_dir):
        samples.append(Sample(path, category, TEST, 1, config.abnormal_dir, masks.pop(_stem(path), None)))
    if masks:
        raise DataError(f"{len(masks)} masks without image in {root.uri}, first {masks[min(masks)]}; remove them.")
    return DataSet(root, samples)


def _read_table(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """A Parquet or CSV file with columns image, category, split and, if known, label, defect, mask.

    Paths are relative to the table's folder.
    """
    folder, name = split_uri(config.data)
    root = Storage(folder, storage_options)
    table = _parse_table(name, root.read(name))
    absent = [column for column in ("image", "category", "split") if column not in table.column_names]
    if absent:
        raise DataError(f"the table {config.data} lacks the columns {absent}; it has {table.column_names}.")
    samples = [_table_sample(row, number, config.data) for number, row in enumerate(table.to_pylist(), start=1)]
    return DataSet(root, samples)


def _parse_table(name: str, content: bytes) -> pa.Table:
    kind = name.lower().rpartition(".")[2]
    try:
        if kind == "parquet":
            return pyarrow.parquet.read_table(io.BytesIO(content))
        if kind == "csv":
            # Text stays as it is written: category 007, and one that is called NA.
            text = pyarrow.csv.ConvertOptions(column_types={column: pa.string() for column in _TEXT})
            return pyarrow.csv.read_csv(io.BytesIO(content), convert_options=text)
    except (pa.ArrowException, OSError) as error:  # pyarrow says OSError of a damaged Parquet file
        raise DataError(f"{name} does not parse as {kind}: {error}") from error
    raise ConfigError(f"{name!r} names no table; give a .parquet or .csv file for layout 'table'.")


def _table_sample(row: Mapping[str, Any], number: int, table: str) -> Sample:
    label, text = row.get("label"), {column: _text(row.get(column)) for column in _TEXT}
    if label not in (0, 1, None):
        raise DataError(f"row {number} of {table} has label {label!r}; allowed are 0 (good), 1 (anomaly) and empty.")
    image, category, split = (_required(text, column, number, table) for column in ("image", "category", "split"))
    for path in (image, text["mask"]):
        if path and (path.startswith("/") or ".." in path.split("/")):
            raise DataError(f"row {number} of {table} leaves the table's folder: {path!r}.")
    return Sample(image, category, split, None if label is None else int(label), text["defect"], text["mask"])


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)


def _required(text: Mapping[str, str | None], column: str, number: int, table: str) -> str:
    value = text[column]
    if value is None:
        raise DataError(f"row {number} of {table} has no {column}.")
    return value


READERS: dict[str, Reader] = {"mvtec": _read_mvtec, "folder": _read_folder, "table": _read_table}

_LAYOUTS = {
    "mvtec": "it needs <category>/train/good/*.png and <category>/test/<good or defect>/*.png below the root.",
    "folder": "it needs images in `normal_dir` below the root.",
    "table": "it needs at least one row.",
}


def _existing(uri: str, storage_options: Mapping[str, Any]) -> Storage:
    root = Storage(uri, storage_options)
    if not root.exists():
        raise DataError(f"the data root {uri} does not exist. Check --data.")
    return root


def _images_below(root: Storage, folder: str | None) -> list[str]:
    return [path for path in root.files(folder) if is_image_name(path)] if folder else []


def _stem(path: str) -> str:
    return posixpath.basename(path).rpartition(".")[0]


def count_by_split(samples: list[Sample]) -> dict[str, int]:
    """How many samples each split has."""
    counts: dict[str, int] = defaultdict(int)
    for sample in samples:
        counts[sample.split] += 1
    return dict(counts)
