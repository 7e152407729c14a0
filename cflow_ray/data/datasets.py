"""Readers of data sets on disk or in object storage: each turns a layout into the sample table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cflow_ray.config import DataConfig, Layout
from cflow_ray.data.layouts.folder import read_folder
from cflow_ray.data.layouts.kolektor import read_kolektor_sdd, read_kolektor_sdd2
from cflow_ray.data.layouts.mvtec import read_btad, read_mvtec, read_mvtec_ad2, read_mvtec_loco
from cflow_ray.data.layouts.real_iad import read_real_iad
from cflow_ray.data.layouts.table import read_table
from cflow_ray.data.layouts.visa import read_visa
from cflow_ray.data.samples import DataSet
from cflow_ray.errors import DataError

Reader = Callable[[DataConfig, Mapping[str, Any]], DataSet]

READERS: dict[Layout, Reader] = {
    "mvtec": read_mvtec,
    "mvtec_ad2": read_mvtec_ad2,
    "mvtec_loco": read_mvtec_loco,
    "visa": read_visa,
    "btad": read_btad,
    "kolektor_sdd": read_kolektor_sdd,
    "kolektor_sdd2": read_kolektor_sdd2,
    "real_iad": read_real_iad,
    "folder": read_folder,
    "table": read_table,
}

_NEEDS: dict[Layout, str] = {
    "mvtec": "<category>/train/good/*.png and <category>/test/<good or defect>/*.png below the root",
    "mvtec_ad2": "<category>/train/good/*.png and <category>/test_public/<good or bad>/*.png below the root",
    "mvtec_loco": "<category>/train/good/*.png and <category>/test/<good or defect>/*.png below the root",
    "visa": "at least one row in split_csv/1cls.csv",
    "btad": "<category>/train/ok/*.bmp and <category>/test/<ok or ko>/*.bmp below the root",
    "kolektor_sdd": "kos01/Part0.jpg and kos01/Part0_label.bmp below the root",
    "kolektor_sdd2": "train/*.png and test/*.png below the root, each with <stem>_GT.png",
    "real_iad": "realiad_jsons/<category>.json below the root",
    "folder": "images in `normal_dir` below the root",
    "table": "at least one row",
}


def read_data_set(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """The data set of a configuration; raises DataError or StorageError where it is not there or breaks its layout."""
    data_set = read_as_found(config, storage_options)
    if strays := data_set.stray_masks:
        raise DataError(
            f"{len(strays)} masks without image in {data_set.root.uri}, first {strays[0]}; remove them or add the images."
        )
    return data_set


def read_as_found(config: DataConfig, storage_options: Mapping[str, Any]) -> DataSet:
    """The same, but masks without image are kept in `stray_masks` for a check to tell."""
    data_set = READERS[config.layout](config, storage_options)
    if not data_set.samples:
        raise DataError(f"no image in {config.data} in layout {config.layout!r}; it needs {_NEEDS[config.layout]}.")
    return data_set
