"""Where a data set is and how its files are laid out."""

from __future__ import annotations

from typing import Literal

from cflow_ray.config.model import Model, Uri

Layout = Literal[
    "mvtec",
    "mvtec_ad2",
    "mvtec_loco",
    "visa",
    "btad",
    "kolektor_sdd",
    "kolektor_sdd2",
    "real_iad",
    "folder",
    "table",
]


class DataConfig(Model):
    """Where images are and how they are laid out."""

    data: Uri
    """Path or URI of the data set's root, or of the table for layout `table`."""
    layout: Layout = "mvtec"
    only: tuple[str, ...] = ()
    """Only these categories (flag --category); empty takes all. Layouts of one category (folder, kolektor_sdd,
    kolektor_sdd2) take its name from here."""
    normal_dir: str = "normal"
    abnormal_dir: str | None = None
    normal_test_dir: str | None = None
    mask_dir: str | None = None
