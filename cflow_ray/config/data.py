"""Where a data set is and how its files are laid out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

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
