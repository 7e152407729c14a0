"""The rows of score tables gathered by category, version and day, part by part; no more is kept than the ranks need."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cflow_ray.errors import CheckpointError
from cflow_ray.evaluation.comparison import DayScores, Reference
from cflow_ray.store.origin import Origin

ReferenceOf = Callable[[str, str], Reference]
"""Of a category and the full name of a version."""

COLUMNS = ("category", "checkpoint", "key", "score", "p_value", "error")
"""Of a score table, all that is read."""


class Group(NamedTuple):
    """Rows that are compared together."""

    category: str
    version: str
    day: date


@dataclass
class GroupRows:
    """What the rows of a group come to."""

    scores: DayScores | None
    """None where the version's calibration cannot be had."""
    unknown: str = ""
    """Why not."""
    images: int = 0
    """With a score."""
    errors: int = 0
    """Without one."""


@dataclass
class DayRows:
    """Takes in tables, whole or in parts, in any order.

    A row is of the day that `day_pattern` finds in its key, or without one of the day of its table.
    """

    day_pattern: str | None = None
    only: Collection[str] = ()
    groups: dict[Group, GroupRows] = field(default_factory=dict)
    categories: set[str] = field(default_factory=set)
    """All that rows name, asked for or not."""
    undated: int = 0
    """Rows whose key does not tell their day."""
    undated_example: str | None = None
    """The first such key in alphabetical order."""
    unassigned: int = 0
    """Rows with `error` of which neither the row nor the plan tells the version."""

    def add(self, table: pa.Table, origin: Origin | None, reference_of: ReferenceOf) -> None:
        """Take in rows of `COLUMNS`; a version of which `reference_of` raises CheckpointError is unknown."""
        columns: dict[str, list[Any]] = table.to_pydict()
        numbers: dict[Group, list[int]] = defaultdict(list)
        for number in range(table.num_rows):
            group = self._group({name: values[number] for name, values in columns.items()}, origin)
            if group is not None:
                numbers[group].append(number)
        score_M = np.array(columns["score"], np.float64)
        p_value_M = np.array(columns["p_value"], np.float64)
        failed_M = np.isnan(score_M) | np.array([error is not None for error in columns["error"]], bool)
        for group, of_group in numbers.items():
            rows = self._rows_of(group, reference_of)
            scored = np.array(of_group)[~failed_M[of_group]]
            rows.images += scored.size
            rows.errors += len(of_group) - scored.size
            if rows.scores is not None:
                rows.scores.add(score_M[scored], p_value_M[scored])

    def _group(self, row: Mapping[str, Any], origin: Origin | None) -> Group | None:
        """Where a row belongs; None where that is unknown, and counted, or not asked for."""
        category = row["category"]
        if category is not None:
            self.categories.add(category)
        if self.only and category not in self.only:
            return None
        day = origin.day if origin is not None else None
        if self.day_pattern is not None:
            day = day_of(row["key"], self.day_pattern)
        if day is None:
            self.undated += 1
            self.undated_example = min(self.undated_example or row["key"], row["key"])
            return None
        version = row["checkpoint"] or (origin.versions.get(category) if origin is not None else None)
        if category is None or version is None:
            self.unassigned += 1
            return None
        return Group(category, version, day)

    def _rows_of(self, group: Group, reference_of: ReferenceOf) -> GroupRows:
        if group not in self.groups:
            try:
                self.groups[group] = GroupRows(DayScores(reference_of(group.category, group.version)))
            except CheckpointError as error:
                self.groups[group] = GroupRows(None, str(error))
        return self.groups[group]


def day_of(key: str, pattern: str) -> date | None:
    """The day that a key names where it holds the pattern, YYYY-MM-DD or YYYYMMDD for {day}; None where it does not."""
    for match in _day_expression(pattern).finditer(key):
        try:
            return date.fromisoformat(match["day"])
        except ValueError:  # no such day, 2026-02-30
            continue
    return None


@lru_cache
def _day_expression(pattern: str) -> re.Pattern[str]:
    before, after = (re.escape(part) for part in pattern.split("{day}"))
    return re.compile(rf"{before}(?<!\d)(?P<day>\d{{4}}-\d\d-\d\d|\d{{8}})(?!\d){after}", re.ASCII)
