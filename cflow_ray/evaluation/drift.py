"""Whether the scores of categories have drifted from their calibration, day by day, and when a refit is due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache, partial
from itertools import groupby
from typing import Any, Literal

from cflow_ray.config import DriftConfig
from cflow_ray.errors import CheckpointError, ConfigError, DataError
from cflow_ray.evaluation.comparison import Comparison, Reference, compare, holm_level, reach_of
from cflow_ray.evaluation.days import COLUMNS, DayRows, Group, GroupRows
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.origin import read_origin
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import read_shard, shards_of
from cflow_ray.store.storage import Storage

Verdict = Literal["refit due", "watch", "ok", "too few images", "unknown"]

_SEVERITY: tuple[Verdict, ...] = ("refit due", "watch", "ok", "too few images", "unknown")
_BULK_LEVEL = 0.05  # of the test that tells a shift from anomalies; what is a shift at all is held to alpha before


@dataclass(frozen=True)
class DayDrift:
    """One version of a category on one day."""

    category: str
    version: str
    day: date
    images: int
    """With a score."""
    errors: int
    """Rows without one."""
    verdict: Verdict
    reason: str
    comparison: Comparison | None = None
    """None where there are too few images or no calibration."""
    limit: float | None = None
    """Distance above which the scores have moved by more than the tolerated distance."""


@dataclass(frozen=True)
class CategoryDrift:
    """What the latest days say of a category, of the version that scores it now."""

    category: str
    version: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class DriftReport:
    """Every group in order of category, version and day, and every category's verdict."""

    days: tuple[DayDrift, ...]
    categories: tuple[CategoryDrift, ...]
    undated: int = 0
    """Rows that name no day."""
    undated_example: str | None = None
    unassigned: int = 0
    """Rows with `error` that belong to no known version."""

    @property
    def refit_due(self) -> list[str]:
        """Names of the categories to fit again."""
        return [one.category for one in self.categories if one.verdict == "refit due"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "days": [asdict(day) | {"day": day.day.isoformat()} for day in self.days],
            "categories": {one.category: asdict(one) for one in self.categories},
            "refit_due": self.refit_due,
            "undated": self.undated,
            "undated_example": self.undated_example,
            "unassigned": self.unassigned,
        }


def drift(config: DriftConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> DriftReport:
    """Compare score tables with the calibrations of the versions that made them; `progress` gets shards done and all.

    Raises DataError where there is no table, a part is damaged or no table knows a category, CheckpointError where a
    registry is none, ConfigError where a table without a plan needs a registry or a day pattern. A version that its
    registry lacks, or that is not calibrated, is `unknown`.
    """
    tables = [_Table(uri, config) for uri in config.results]
    rows = DayRows(config.day_pattern, config.only)
    total, done = sum(len(table.shards) for table in tables), 0
    for table in tables:
        for shard in table.shards:
            for part in read_shard(table.storage, shard, COLUMNS):
                rows.add(part, table.origin, table.reference_of)
            done += 1
            progress(done, total)
    known = rows.categories.union(*(table.origin.versions for table in tables if table.origin is not None))
    if unknown := sorted(set(config.only) - known):
        raise DataError(
            f"no category {', '.join(map(repr, unknown))} in the tables; they have {', '.join(sorted(known))}."
        )
    return report_of(rows, config)


def report_of(rows: DayRows, config: DriftConfig) -> DriftReport:
    """The verdicts on what was gathered.

    A day is judged from `min_images` on. Its tests, corrected by Holm over all judged days of the report:

    - *moved*: the Kolmogorov-Smirnov distance is beyond `min_distance`, with confidence 1 - alpha
    - *differs*: the distance is no chance, or there are more alarms than the calibration's luck explains, 1 - alpha

    It is `refit due` where it has moved and so has the bulk: the distance among scores below the calibration's 90th
    percentile is at least `min_distance` with p <= 0.05, or more than half of the images lie above. Else it is `watch`
    where it has moved or differs, else `ok`. A category is `refit due` where more than half of the `last_days` judged
    days of its version are.
    """
    days = _judged(rows.groups, config)
    by_category = [list(group) for _, group in groupby(days, key=lambda day: day.category)]
    return DriftReport(
        days=tuple(days),
        categories=tuple(_category(of_category, config.last_days) for of_category in by_category),
        undated=rows.undated,
        undated_example=rows.undated_example,
        unassigned=rows.unassigned,
    )


class _Table:
    """A score table to read, with what is known of its origin and its versions."""

    def __init__(self, uri: str, config: DriftConfig) -> None:
        self.storage = Storage(uri, config.storage_options)
        self.shards = shards_of(self.storage)
        self.origin = read_origin(self.storage)
        registry = config.registry or (self.origin.registry if self.origin else None)
        if config.registry is None and self.origin is not None and self.origin.is_of_server:
            raise ConfigError(f"{uri} was scored by the server {registry}; give the --registry that it serves.")
        if registry is None or (self.origin is None and config.day_pattern is None):
            raise ConfigError(f"{uri} has no plan beside its parts; give both --registry and --day-pattern.")
        opened = Registry(Storage(registry, config.storage_options))
        self.reference_of = cache(partial(_reference, opened, config.target_fpr))


def _reference(registry: Registry, target_fpr: float | None, category: str, version: str) -> Reference:
    manifest = registry.manifest(category, registry.resolve(category, version))
    if not manifest.calibration_scores:
        raise CheckpointError(
            f"{version} of {category!r} is not calibrated. "
            f"Run: cflow-ray models calibrate {category} {version} --data ... --registry {registry.storage.uri}"
        )
    calibration = Calibration.of(manifest.peaks, manifest.calibration_scores)
    return Reference(calibration, target_fpr or manifest.detector.target_fpr)


def _judged(groups: Mapping[Group, GroupRows], config: DriftConfig) -> list[DayDrift]:
    """Every group's verdict, in order of category, version and day."""
    compared = {
        group: compare(rows.scores, config.min_distance)
        for group, rows in groups.items()
        if rows.scores is not None and rows.images >= config.min_images
    }
    moved_level = holm_level([one.shift_p_value for one in compared.values()], config.alpha)
    tests = [p_value for one in compared.values() for p_value in (one.p_value, one.alarm_p_value)]
    rule = _Rule(config, moved_level, holm_level(tests, config.alpha))
    return [rule.judge(group, groups[group], compared.get(group)) for group in sorted(groups)]


@dataclass(frozen=True)
class _Rule:
    """The levels that a report's tests are held to, and the verdicts that follow."""

    config: DriftConfig
    moved_level: float
    differs_level: float

    def judge(self, group: Group, rows: GroupRows, found: Comparison | None) -> DayDrift:
        described = DayDrift(*group, rows.images, rows.errors, "unknown", rows.unknown)
        if rows.scores is None:
            return described
        if found is None:
            few = f"{rows.images} images; {self.config.min_images} are needed"
            return replace(described, verdict="too few images", reason=few)
        reach = reach_of(self.moved_level, found.images, found.calibration_images)
        limit = self.config.min_distance + reach
        verdict, reason = self._verdict(found, limit)
        return replace(described, verdict=verdict, reason=reason, comparison=found, limit=limit)

    def _verdict(self, found: Comparison, limit: float) -> tuple[Verdict, str]:
        where = f"the median lies above {100 * found.median_rank:.0f} % of the calibration scores"
        moved = found.shift_p_value <= self.moved_level
        if moved and self._bulk_moved(found):
            return "refit due", f"distance {found.distance:.2f} is over {limit:.2f} and the bulk has moved; {where}"
        if moved and found.above_bulk > 0.5:
            return (
                "refit due",
                f"{100 * found.above_bulk:.0f} % of the images score above the calibration's bulk; {where}",
            )
        reasons = []
        if moved:
            reasons.append(
                f"distance {found.distance:.2f} is over {limit:.2f}, but the bulk is as it was: many anomalies, "
                "or part of the images has drifted"
            )
        elif found.p_value <= self.differs_level:
            reasons.append(f"distance {found.distance:.2f} is more than chance, if within {limit:.2f}; {where}")
        if found.alarm_p_value <= self.differs_level:
            reasons.append(f"{100 * found.alarm_share:.1f} % alarms where {100 * found.promised:.1f} % are promised")
        return ("watch", "; ".join(reasons)) if reasons else ("ok", "as the calibration")

    def _bulk_moved(self, found: Comparison) -> bool:
        return found.bulk_p_value <= _BULK_LEVEL and found.bulk_distance >= self.config.min_distance


def _category(days: Sequence[DayDrift], last_days: int) -> CategoryDrift:
    """The verdict on a category from all its days: of the versions seen on its latest day the worst."""
    latest = max(day.day for day in days)
    current = sorted({day.version for day in days if day.day == latest})
    versions = [_version([day for day in days if day.version == version], last_days) for version in current]
    return min(versions, key=lambda one: _SEVERITY.index(one.verdict))


def _version(days: Sequence[DayDrift], last_days: int) -> CategoryDrift:
    """The verdict on a version from its days, the earliest first."""
    judged = [day for day in days if day.comparison is not None][-last_days:]
    if not judged:
        return CategoryDrift(days[-1].category, days[-1].version, days[-1].verdict, days[-1].reason)
    worst = min(reversed(judged), key=lambda day: _SEVERITY.index(day.verdict))
    due = sum(day.verdict == "refit due" for day in judged)
    verdict: Verdict = worst.verdict if worst.verdict != "refit due" or 2 * due > len(judged) else "watch"
    alike = sum(day.verdict == worst.verdict for day in judged)
    reason = f"{worst.verdict} on {alike} of the last {len(judged)} judged days; {worst.day}: {worst.reason}"
    return CategoryDrift(worst.category, worst.version, verdict, reason)
