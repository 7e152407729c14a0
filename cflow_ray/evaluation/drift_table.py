"""A drift report for a person: the figures of every day, why some are not ok, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cflow_ray.evaluation.drift import DayDrift, DriftReport


def drift_tables(report: DriftReport) -> list[Table]:
    """One row a day with its figures, then why some of them are not ok, then every category's verdict."""
    by_group = ("Category", "Version", "Day")
    figures = ("Distance (95 %)", "Limit", "Median", "Alarms, % (95 %)", "Promised, %")
    days = Table(*by_group, "Images", "Errors", *figures, "Verdict")
    reasons, verdicts = Table(*by_group, "Why"), Table("Category", "Version", "Verdict", "Why")
    for day in report.days:
        group = (day.category, day.version, day.day.isoformat())
        days.add_row(*group, str(day.images), str(day.errors), *_figures(day), day.verdict)
        if day.verdict != "ok":
            reasons.add_row(*group, f"{day.verdict}: {day.reason}")
    for one in report.categories:
        verdicts.add_row(one.category, one.version, one.verdict, one.reason)
    return [days, *([reasons] if reasons.row_count else []), verdicts]


def left_out(report: DriftReport) -> list[str]:
    """A line for each kind of row that no day counts."""
    lines = []
    if report.undated:
        lines.append(f"{report.undated} rows are undated: their keys name no day, e.g. {report.undated_example!r}")
    if report.unassigned:
        lines.append(f"{report.unassigned} rows with error belong to no known version")
    return lines


def _figures(day: DayDrift) -> tuple[str, ...]:
    """Distance, limit, median, alarms and promise of a day."""
    found = day.comparison
    if found is None or day.limit is None:
        return ("-",) * 5
    return (
        _with_interval(found.distance, found.distance_interval, 2),
        f"{day.limit:.2f}",
        f"{found.median_rank:.2f}",
        _with_interval(100 * found.alarm_share, [100 * end for end in found.alarm_interval], 1),
        _with_interval(100 * found.promised, [100 * end for end in found.promised_interval], 1),
    )


def _with_interval(value: float, interval: Sequence[float], digits: int) -> str:
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
