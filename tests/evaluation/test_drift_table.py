"""The tables of a drift report say names as they are."""

from __future__ import annotations

import io
from datetime import date

from cflow_ray.cli.command import Output
from cflow_ray.evaluation.drift import CategoryDrift, DayDrift, DriftReport
from cflow_ray.evaluation.drift_table import drift_tables


def test_names_in_brackets_are_printed_by_the_command_as_they_are() -> None:
    reason = "compared with img[left].png"
    day = DayDrift("nut[b]", "v1[i]", date(2026, 11, 23), 3, 0, "too few images", reason)
    report = DriftReport((day,), (CategoryDrift("nut[b]", "v1[i]", "too few images", reason),))
    stream = io.StringIO()
    Output(False, stream)({}, *drift_tables(report))
    shown = stream.getvalue()
    assert [shown.count(text) for text in ("nut[b] ", "v1[i] ", reason)] == [3, 3, 2]
    assert "\\" not in shown
