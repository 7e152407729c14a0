"""What a person reads: the tables of figures, of versions and of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.table import Table

from cflow_ray.evaluation.difference import CHANGES, SAME, Difference
from cflow_ray.evaluation.figures import Metrics
from cflow_ray.store.registry import Version

if TYPE_CHECKING:
    from cflow_ray.evaluation.paper import PaperFigures

_ROWS = (("Image-Level AUC", "image_auroc"), ("Pixel-Level AUC", "pixel_auroc"), ("Pixel F1 Score", "pixel_f1"))


_FIGURES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "image_f1": "Image F1, best threshold",
    "image_tpr_at_fpr_01": "Images found at 1 % false alarms",
    "image_tpr_at_fpr_05": "Images found at 5 % false alarms",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel average precision",
    "pixel_f1": "Pixel F1, best threshold",
    "aupro": "AUPRO up to 0.3",
    "aupro_005": "AUPRO up to 0.05",
    "aupimo": "AUPIMO",
}


def metrics_table(metrics: Mapping[str, Metrics]) -> Table:
    """Image-Level AUC, Pixel-Level AUC and Pixel F1 Score: the average, then a category's own with its interval below."""
    table = Table("Metric", "Avg", *(category.replace("_", " ").title() for category in metrics))
    for title, name in _ROWS:
        average = mean([getattr(of_category, name) for of_category in metrics.values()])
        table.add_row(title, figure(average), *(above_interval(of_category, name) for of_category in metrics.values()))
    return table


def figures_table(metrics: Mapping[str, Metrics]) -> Table:
    """Every figure of every category with its 95 % bootstrap interval; figures that none has are left out."""
    table = Table("Figure (95 % interval)", *(category.replace("_", " ").title() for category in metrics))
    for name, title in _FIGURES.items():
        if any(getattr(of_category, name) is not None for of_category in metrics.values()):
            shown = (_beside_interval(of_category, name, " ({:.1f} to {:.1f})") for of_category in metrics.values())
            table.add_row(title, *shown)
    table.add_row("Images", *(str(of_category.images) for of_category in metrics.values()))
    return table


def above_interval(metrics: Metrics, name: str) -> str:
    """A figure in per cent and, on a line of its own where it is known, its 95 % bootstrap interval: for narrow columns."""
    return _beside_interval(metrics, name, "\n{:.1f}-{:.1f}")


def _beside_interval(metrics: Metrics, name: str, interval: str) -> str:
    """A figure in per cent and, where it is known, its interval in the format given."""
    ends = metrics.intervals.get(name)
    return figure(getattr(metrics, name)) + (interval.format(*(100 * end for end in ends)) if ends else "")


def comparison_tables(
    metrics: Mapping[str, Metrics], published: Mapping[str, Mapping[str, float]], source: str
) -> list[Table]:
    """One table a metric: these figures with their intervals, and below them what was published for the same categories."""
    tables = []
    for title, name in _ROWS:
        table = Table(title, "Avg", *(category.replace("_", " ").title() for category in metrics))
        ours = [getattr(of_category, name) for of_category in metrics.values()]
        theirs = [published.get(name, {}).get(category) for category in metrics]
        table.add_row("cflow_ray, unseen test set", *(figure(value) for value in [mean(ours), *ours]))
        intervals = [of_category.intervals.get(name) for of_category in metrics.values()]
        if any(intervals):  # a row an end: fifteen columns are narrow
            for title_of_end, end in (("95 % from", 0), ("95 % to", 1)):
                table.add_row(title_of_end, "", *(figure(pair[end] if pair else None) for pair in intervals))
        table.add_row(source, *(figure(value) for value in [mean(theirs), *theirs]))
        tables.append(table)
    return tables


def paper_table(figures: Mapping[str, PaperFigures]) -> Table:
    """AUROC under the paper's score, labelled as what it is."""
    title = "The paper's score: scaled by the maximum over the test set, for comparison only"
    table = Table("Metric", "Avg", *(category.replace("_", " ").title() for category in figures), title=title)
    for metric, name in _ROWS[:2]:
        values = [getattr(of_category, name) for of_category in figures.values()]
        table.add_row(metric, *(figure(value) for value in [mean(values), *values]))
    return table


def versions_table(versions: Sequence[Version]) -> Table:
    """Every version of a registry, with its figures' 95 % intervals; the promoted one is marked."""
    table = Table("Category", "Version", "Best", "Created", "Image AUROC", "Pixel AUROC", "Images")
    for version in versions:
        manifest = version.manifest
        metrics = Metrics.from_dict(manifest.metrics)
        figures = (above_interval(metrics, name) for name in ("image_auroc", "pixel_auroc"))
        best = "best" if version.promoted else "" if manifest.is_calibrated else "not calibrated"
        images = str(manifest.training_images)
        table.add_row(version.category, version.version, best, manifest.created, *figures, images)
    return table


def difference_report(difference: Difference, limit: int) -> list[str | Table]:
    """Counts by category, up to `limit` images that differ in more than their score, and as many whose score moved most."""
    counts = Table("Category", *(name.replace("_", " ") for name in (SAME, *CHANGES)))
    for category, of_category in difference.counts.items():
        counts.add_row(category or "-", *(str(count) for count in of_category.values()))
    counts.add_row("all", *(str(count) for count in difference.total.values()))
    changed, moved = difference.changed, difference.moved(limit)
    parts: list[str | Table] = [counts]
    if changed.num_rows and limit:
        parts.append(_images_table("What changed", "change", changed.slice(0, limit), changed.num_rows))
    if moved.num_rows:
        parts.append(_images_table("Largest changes of score", "score_change", moved, moved.num_rows))
    if difference.duplicates:
        named = ", ".join(repr(name) for name in difference.duplicates[:limit])
        parts.append(f"Not compared, as more than one row has the name: {len(difference.duplicates)} ({named})")
    return parts


def _images_table(title: str, column: str, images: pa.Table, total: int) -> Table:
    caption = (
        f"{images.num_rows} of {total}; --limit shows more, --write takes all" if images.num_rows < total else None
    )
    names = (
        "Image",
        "Category",
        column.replace("_", " ").capitalize(),
        "Score A",
        "B",
        "p A",
        "B",
        "Checkpoint A",
        "B",
    )
    table = Table(*names, title=title, caption=caption)
    figures = ("score_a", "score_b", "p_value_a", "p_value_b")
    for row in images.to_pylist():
        values = (row["category"], row[column], *(row[name] for name in (*figures, "checkpoint_a", "checkpoint_b")))
        table.add_row(row[images.column_names[0]], *(_value(value) for value in values))
    return table


def _value(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def mean(values: list[float | None]) -> float | None:
    """The mean; None if any value is missing or there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def figure(value: float | None) -> str:
    """A figure in per cent with two decimals; `-` where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"
