"""Where a data set is and how its files are laid out."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cflow_ray.config.model import Bytes, Model, Uri

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
    root: Uri | None = None
    """Root of the paths in a table (layout `table`); null takes the table's folder."""
    only: tuple[str, ...] = ()
    """Only these categories (flag --category); empty takes all. Layouts of one category (folder, kolektor_sdd,
    kolektor_sdd2) take its name from here."""
    normal_dir: str = "normal"
    abnormal_dir: str | None = None
    normal_test_dir: str | None = None
    mask_dir: str | None = None

    @model_validator(mode="after")
    def _only_a_table_has_another_root(self) -> Self:
        if self.root is not None and self.layout != "table":
            raise ValueError(f"`root` goes with layout table; layout {self.layout} has its root in `data`")
        return self


MAX_PIXELS = 89_478_485
"""Pillow's own limit for a decompression bomb: 270 MB as RGB."""


class ReadConfig(Model):
    """How archives are read, the same for all of a job."""

    image_column: str | None = None
    """Column of image bytes in Parquet files; null takes the only one."""
    key_column: str | None = None
    """Column of record keys in Parquet files; null takes `key`, `path`, `image_id`, `filename` or `file_name`, or else
    counts the rows."""
    category_field: str | None = None
    """The field of side-cars or manifests, or the column, that names the category; null takes it from the key."""
    max_image_size: Annotated[Bytes, Field(ge=1)] = 256 * 10**6
    """Most bytes of one image, unpacked; a larger one becomes a row with `error`."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Most pixels of one image; a larger one becomes a row with `error`."""
