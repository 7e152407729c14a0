"""The difference of two score tables over the same images: which decisions changed, which scores moved most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cflow_ray.config import DiffConfig
from cflow_ray.store.results import read_table
from cflow_ray.store.storage import Storage, write_file

SAME = "same"
CHANGES = ("ok_to_anomaly", "anomaly_to_ok", "error_in_a", "error_in_b", "only_in_a", "only_in_b")
"""What can differ: the decision from A to B, an error in one of them, or an image that only one of them has."""

_PAIRED = ("score", "p_value", "checkpoint")
_COLUMNS = ("category", "is_anomaly", *_PAIRED)


@dataclass(frozen=True)
class Difference:
    """Two score tables, A and B, image by image."""

    images: pa.Table
    """A row for every image of either: `key` or `image_id`, `category`, `change` (`same` or one of CHANGES) and
    `score_a`, `score_b`, `p_value_a`, `p_value_b`, `checkpoint_a`, `checkpoint_b`."""
    duplicates: tuple[str, ...]
    """Names that more than one row of A or of B has; they are not compared."""

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images by category ("" where it is not known) and what differs, `same` among it."""
        counted = self.images.group_by(["category", "change"]).aggregate([([], "count_all")])
        counts: dict[str, dict[str, int]] = {}
        for row in counted.sort_by("category").to_pylist():
            of_category = counts.setdefault(row["category"] or "", dict.fromkeys((SAME, *CHANGES), 0))
            of_category[row["change"]] += row["count_all"]
        return counts

    @property
    def total(self) -> dict[str, int]:
        """The same over all categories."""
        return {name: sum(counts[name] for counts in self.counts.values()) for name in (SAME, *CHANGES)}

    @cached_property
    def changed(self) -> pa.Table:
        """The images that differ in more than their score, by category and name."""
        rows = self.images.filter(pc.not_equal(self.images["change"], SAME))
        return rows.sort_by([("category", "ascending"), (rows.column_names[0], "ascending")])

    def moved(self, limit: int) -> pa.Table:
        """The images whose score differs most, with `score_change` = B - A."""
        change = pc.subtract(self.images["score_b"], self.images["score_a"])
        order = pa.table({"size": pc.abs(change), "name": self.images.column(0)})
        largest = pc.select_k_unstable(order, limit, [("size", "descending"), ("name", "ascending")])
        rows = self.images.take(largest).append_column("score_change", change.take(largest))
        return rows.filter(pc.not_equal(rows["score_change"], 0))

    @property
    def differs(self) -> bool:
        """Whether anything but scores differs, or could not be compared."""
        return bool(self.changed.num_rows or self.duplicates)

    def as_dict(self, limit: int) -> dict[str, Any]:
        """For JSON: all counts, and up to `limit` images of each list."""
        return {
            **self.total,
            "categories": self.counts,
            "changed": self.changed.slice(0, limit).to_pylist(),
            "moved": self.moved(limit).to_pylist(),
            "duplicates": len(self.duplicates),
            "duplicated": list(self.duplicates[:limit]),
        }


def diff(config: DiffConfig) -> Difference:
    """Compare two score tables and write what differs where that is asked for; raises DataError where one is none."""
    a, b = (read_decisions(Storage(uri, config.storage_options), config.by) for uri in (config.a, config.b))
    difference = compare(a, b)
    if config.write is not None:
        buffer = pa.BufferOutputStream()
        pq.write_table(difference.changed, buffer, compression="zstd")
        write_file(config.write, buffer.getvalue().to_pybytes(), config.storage_options)
    return difference


def read_decisions(results: Storage, by: str = "key") -> pa.Table:
    """What is compared of a score table: the images' names, then category, is_anomaly, score, p_value, checkpoint."""
    return read_table(results, (by, *_COLUMNS))


def compare(a: pa.Table, b: pa.Table) -> Difference:
    """The difference of two tables of `read_decisions`."""
    by = a.column_names[0]
    duplicates = pa.chunked_array([_duplicates(a[by]), _duplicates(b[by])]).unique()
    if len(duplicates):
        a, b = (table.filter(pc.invert(pc.is_in(table[by], value_set=duplicates))) for table in (a, b))
    only_b = b[by].filter(pc.invert(pc.is_in(b[by], value_set=a[by])))
    names = pa.chunked_array([*a[by].chunks, *only_b.chunks], pa.string())
    in_a, in_b = (_aligned(table, names) for table in (a, b))
    columns = {f"{name}_{side}": table[name] for name in _PAIRED for side, table in (("a", in_a), ("b", in_b))}
    images = pa.table(
        {by: names, "category": pc.coalesce(in_a["category"], in_b["category"]), "change": _changes(in_a, in_b)}
        | columns
    )
    return Difference(images, tuple(duplicates.to_pylist()))


def _duplicates(names: pa.ChunkedArray) -> pa.Array:
    """Those that come more than once."""
    if pc.count_distinct(names).as_py() == len(names):
        return pa.array([], pa.string())
    counts = pc.value_counts(names)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _aligned(table: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    """The rows of these names, null where there is none; `is_there` says which."""
    at = pc.index_in(names, value_set=table.column(0))
    return table.select(_COLUMNS).take(at).append_column("is_there", pc.is_valid(at))


def _changes(a: pa.Table, b: pa.Table) -> pa.ChunkedArray:
    """What differs of each image; a row without decision is one with an error."""
    failed_a, failed_b = pc.is_null(a["is_anomaly"]), pc.is_null(b["is_anomaly"])
    cases: Mapping[str, Any] = {
        "only_in_a": pc.invert(b["is_there"]),
        "only_in_b": pc.invert(a["is_there"]),
        "error_in_a": pc.and_not(failed_a, failed_b),
        "error_in_b": pc.and_not(failed_b, failed_a),
        "ok_to_anomaly": pc.and_not(b["is_anomaly"], a["is_anomaly"]),
        "anomaly_to_ok": pc.and_not(a["is_anomaly"], b["is_anomaly"]),
    }
    conditions = pc.make_struct(*(pc.fill_null(case, False) for case in cases.values()), field_names=list(cases))
    return pc.case_when(conditions, *(pa.scalar(name) for name in cases), pa.scalar(SAME))
