"""A run's status on a progress board: one line a category."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from cflow_ray.evaluation.report import figure
from cflow_ray.model.progress import FitProgress
from cflow_ray.progress import ProgressBoard
from cflow_ray.train.category import Outcome
from cflow_ray.train.queue import QueueStatus
from cflow_ray.train.run import Watch

_PER_LEVEL = 100


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
    """What became of every category, with its figures or its error."""
    table = Table("Category", "Outcome", "Version", "Seconds", "Image AUROC", "Pixel AUROC", "Pixel F1", "Remarks")
    for outcome in outcomes:
        metrics = outcome.metrics
        figures = (figure(value) for value in (metrics.image_auroc, metrics.pixel_auroc, metrics.pixel_f1))
        remarks = outcome.error or "\n".join(outcome.notes)
        table.add_row(
            outcome.category, outcome.status, outcome.version, f"{outcome.seconds:.0f}", *figures, escape(remarks)
        )
    return table


def _position(progress: FitProgress | None) -> tuple[int, int, str]:
    if progress is None:
        return 0, _PER_LEVEL, "reading images, encoding"
    levels_before = progress.model * progress.levels + progress.level
    done = levels_before * _PER_LEVEL + _PER_LEVEL * progress.step // progress.steps
    of_all = progress.models * progress.levels * _PER_LEVEL
    model = f"model {progress.model + 1}/{progress.models} " if progress.models > 1 else ""
    note = f"{model}level {progress.level + 1} step {progress.step}/{progress.steps}, held-out NLL {progress.nll:.3f}"
    return min(done, of_all - 1), of_all, note


def _note(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return f"failed: {outcome.error}"
    auroc = outcome.metrics.image_auroc
    figure = "" if auroc is None else f", image AUROC {auroc:.3f}"
    return f"{outcome.status} {outcome.version} in {outcome.seconds:.0f} s{figure}"
