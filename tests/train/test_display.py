"""What a run's board says of the categories in hand and of those that are over."""

from __future__ import annotations

import logging

import pytest

from cflow_ray.model.progress import FitProgress
from cflow_ray.progress import ProgressBoard
from cflow_ray.train.display import watch_on
from cflow_ray.train.progress import CategoryMeter, CategoryProgress
from cflow_ray.train.queue import QueueStatus
from cflow_ray.train.task import Outcome


def stepped(step: int) -> CategoryProgress:
    return CategoryMeter(images=8, fits=1).stepped(0, FitProgress(0, 1, step, 10, 1.25))


def at_a_test_image(meter: CategoryMeter) -> CategoryProgress:
    meter.stepped(0, FitProgress(0, 1, 10, 10, 1.25))
    return meter.testing(5, 9)


@pytest.mark.parametrize(
    ("look", "line"),
    [
        (None, "0/1000 starting"),
        (CategoryProgress(3, 8, 2.5), "0/1000 encoding image 3/8, 2.5 images/s"),
        (stepped(4), "400/1000 level 1 step 4/10, held-out NLL 1.250, encoded at 0.0 images/s"),
        (at_a_test_image(CategoryMeter(images=8, fits=1)), "999/1000 scoring test image 5/9"),
        (CategoryMeter(images=8, fits=1).testing(5, 9), "0/1000 scoring test image 5/9"),
    ],
    ids=["starting", "encoding", "fitting", "testing", "testing a fit that was restored whole"],
)
def test_each_stage_of_a_category_says_how_far_it_is(
    look: CategoryProgress | None, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cflow_ray"), ProgressBoard("fit") as board:
        watch_on(board)(QueueStatus(in_hand={"grid": look}, outcomes={}))
    assert caplog.messages == ["fit", f"grid: {line}"]


def test_a_category_that_is_over_says_how_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    outcome = Outcome("grid", "failed", error="no training image")
    with caplog.at_level(logging.INFO, "cflow_ray"), ProgressBoard("fit") as board:
        watch_on(board)(QueueStatus(in_hand={}, outcomes={"grid": outcome}))
    assert caplog.messages == ["fit", "grid: 1/1 failed: no training image"]
