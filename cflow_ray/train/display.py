"""A run's status on a progress board: one line a category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from cflow_ray.data.samples import TEST, TRAIN
from cflow_ray.evaluation.report import above_interval
from cflow_ray.progress import ProgressBoard
from cflow_ray.train.plan import FitPlan
from cflow_ray.train.progress import CategoryProgress
from cflow_ray.train.queue import QueueStatus, Watch
from cflow_ray.train.task import Outcome

if TYPE_CHECKING:
    from cflow_ray.train.estimate import Estimate

_STEPS = 1000  # of a bar


def watch_on(board: ProgressBoard) -> Watch:
    """A `watch` for `fit` that keeps the board up to date."""

    def watch(status: QueueStatus) -> None:
        for category, progress in status.in_hand.items():
            done, total, note = _position(progress)
            board.update(category, done, total, note)
        for category, outcome in status.outcomes.items():
            board.update(category, 1, 1, _note(outcome))

    return watch


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """What became of every category, with its figures and their 95 % bootstrap intervals, or its error."""
    figures_shown = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "pixel_f1": "Pixel F1"}
    table = Table(
        "Category", "Outcome", "Version", "Best", "Seconds", "Peak MB", "NLL", *figures_shown.values(), "Remarks"
    )
    for outcome in outcomes:
        figures = (above_interval(outcome.metrics, name) for name in figures_shown)
        remarks = outcome.error or "\n".join(outcome.notes)
        cost = (f"{outcome.seconds:.0f}", _number(outcome.peak_mb, 0), _number(outcome.nll, 3))
        best = "yes" if outcome.promoted else "no"
        table.add_row(outcome.category, outcome.status, outcome.version, best, *cost, *figures, remarks)
    return table


def plan_table(plan: FitPlan, estimates: Mapping[str, Estimate]) -> Table:
    """What a run would do: the categories in their order with what they take, then those that need no fit."""
    table = Table("", "Category", "Images", "Input", "Encoder", "Recipe", "Features MB", "About", "Remarks")
    for number, task in enumerate(plan.due, start=1):
        config, estimate = task.detector, estimates[task.category]
        images = " + ".join(str(sum(sample.split == split for sample in task.samples)) for split in (TRAIN, TEST))
        size = f"{config.size[0]} x {config.size[1]}"
        settings = (size, config.encoder.name, config.recipe)
        cost = (f"{estimate.features_mb:.0f}", _duration(estimate.seconds))
        counts = {"seeds": task.seeds, "workers": task.workers}
        remarks = ", ".join(f"{count} {name}" for name, count in counts.items() if count > 1)
        table.add_row(str(number), task.category, images, *settings, *cost, remarks)
    for outcome in plan.settled:
        remark = outcome.error or f"{outcome.status} {outcome.version}"
        table.add_row("-", outcome.category, *["-"] * 6, remark)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _position(progress: CategoryProgress | None) -> tuple[int, int, str]:
    """Where the bar of a category stands, and what is said behind it."""
    if progress is None:
        return 0, _STEPS, "starting"
    position = min(int(progress.share * _STEPS), _STEPS - 1)
    if progress.of_test_images:
        return position, _STEPS, f"scored {progress.tested} of {progress.of_test_images} test images"
    if progress.fit is None:
        read = f"encoding image {progress.images}/{progress.of_images}, {progress.images_per_second:.1f} images/s"
        return 0, _STEPS, read
    fit = progress.fit
    model = f"model {fit.model + 1}/{fit.models} " if fit.models > 1 else ""
    level = f"level {fit.level + 1} step {fit.step}/{fit.steps}"
    left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
    note = f"{model}{level}, held-out NLL {fit.nll:.3f}{left}, encoded at {progress.images_per_second:.1f} images/s"
    return position, _STEPS, note


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _note(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return f"failed: {outcome.error}"
    auroc = outcome.metrics.image_auroc
    figure = "" if auroc is None else f", image AUROC {auroc:.3f}"
    return f"{outcome.status} {outcome.version} in {outcome.seconds:.0f} s{figure}"
