"""What a run's board says of the categories in hand and of those that are over."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from cflow_ray.cli.command import Output
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.model.progress import FitProgress
from cflow_ray.progress import ProgressBoard
from cflow_ray.train.display import outcome_table, plan_table, watch_on
from cflow_ray.train.plan import FitPlan
from cflow_ray.train.progress import CategoryMeter, CategoryProgress
from cflow_ray.train.queue import QueueStatus
from cflow_ray.train.task import FitSite, Outcome


def stepped(step: int) -> CategoryProgress:
    return CategoryMeter(images=8, fits=1).stepped(0, FitProgress(0, 1, step, 10, 1.25))


@pytest.mark.parametrize(
    ("look", "line"),
    [
        (None, "0/1000 starting"),
        (CategoryProgress(3, 8, 2.5), "0/1000 encoding image 3/8, 2.5 images/s"),
        (stepped(4), "400/1000 level 1 step 4/10, held-out NLL 1.250, encoded at 0.0 images/s"),
        (CategoryMeter(images=8, fits=1).tested(0, 5, 9), "999/1000 scored 5 of 9 test images"),
        (CategoryMeter(images=8, fits=2).tested(0, 0, 9), "500/1000 scored 0 of 9 test images"),
    ],
    ids=["starting", "encoding", "fitting", "testing", "testing the first of two fits"],
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


def test_the_table_of_outcomes_has_the_figures_with_their_intervals() -> None:
    found = Metrics(image_auroc=0.9621, pixel_auroc=0.9912, intervals={"image_auroc": (0.93, 0.986)})
    console = Console(file=io.StringIO(), width=200)
    console.print(outcome_table([Outcome("grid", "fitted", "v1-abc", found), Outcome("weave", "failed", error="lost")]))
    assert isinstance(console.file, io.StringIO)
    grid, below, weave = (line.split("│") for line in console.file.getvalue().splitlines() if line[0] == "│")
    assert [cell.strip() for cell in grid[8:11]] == ["96.21", "99.12", "-"]
    assert [cell.strip() for cell in below[8:11]] == ["93.0-98.6", "", ""]
    assert weave[-2].strip() == "lost"


def test_names_in_brackets_are_printed_by_the_command_as_they_are() -> None:
    lost = Outcome("weave", "failed", error="cannot read img[left].png")
    plan = FitPlan(FitSite("data", "registry", {}), due=(), settled=(lost,))
    for table in (outcome_table([lost]), plan_table(plan, {})):
        stream = io.StringIO()
        Output(False, stream)({}, table)
        assert "cannot read img[left].png" in stream.getvalue()
