"""A check's report for a person: what every category holds, then what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from cflow_ray.data.findings import HURTS_A_FIT, LABELS, CheckReport, Finding, Kind
from cflow_ray.data.samples import TEST, TRAIN

_EXAMPLES = 3
_TITLES: Mapping[Kind, str] = {
    "no_training_images": "categories without training images",
    "unreadable_training_images": "unreadable training images",
    "leakage": "leakage between train and other splits",
    "masks_without_image": "masks without an image",
    "similar_categories": "categories that only spelling tells apart",
    "unreadable_images": "unreadable images of other splits",
    "unreadable_masks": "unreadable masks",
    "duplicates": "duplicates within a category",
    "duplicates_across_categories": "duplicates across categories",
    "anomalies_without_mask": "anomalous test images without a mask",
    "mask_sizes": "masks of another size than their image",
}


def figures_table(report: CheckReport) -> Table:
    """One row a category: images by split and label, masks, sizes and modes."""
    columns = _columns(report)
    table = Table()
    table.add_column("Category", overflow="fold")
    for split, label in columns:
        table.add_column(f"{split} {label}", justify="right")
    table.add_column("Masks", justify="right")
    table.add_column("Sizes", justify="right")
    for title in ("Width", "Height", "Mode"):
        table.add_column(title)
    for name, figures in report.categories.items():
        counts = (str(figures.images[split][label]) if split in figures.images else "0" for split, label in columns)
        sides = (_extent([size[side] for size in figures.sizes]) for side in (0, 1))
        modes = ", ".join(
            f"{mode} {count}" if len(figures.modes) > 1 else mode for mode, count in figures.modes.most_common()
        )
        table.add_row(name, *counts, str(figures.masks), str(len(figures.sizes)), *sides, modes or "-")
    return table


def findings_table(report: CheckReport) -> Table:
    """One row a kind of finding, with the first few of it; those that hurt a fit say so."""
    table = Table("Finding", "Hurts a fit")
    table.add_column("Count", justify="right")
    table.add_column("Which", overflow="fold")
    for kind, found in report.by_kind.items():
        hurts = "yes" if kind in HURTS_A_FIT else "no"
        table.add_row(_TITLES[kind], hurts, str(len(found)), _examples(found))
    return table


def verdict(report: CheckReport) -> str:
    """The report in one line."""
    images, categories = sum(figures.total for figures in report.categories.values()), len(report.categories)
    start = f"{images} images in {categories} {'category' if categories == 1 else 'categories'} of {report.data}"
    if not report.findings:
        return f"{start}: nothing found"
    hurting = [_TITLES[kind] for kind in report.by_kind if kind in HURTS_A_FIT]
    if not hurting:
        return f"{start}: nothing found that hurts a fit"
    return f"{start}: before a fit, look at {', '.join(hurting)}"


def _columns(report: CheckReport) -> list[tuple[str, str]]:
    """Splits and labels that any category has: train first, then validation and the like, then tests."""
    every = {(s, label) for f in report.categories.values() for s, labels in f.images.items() for label in labels}
    labels = list(LABELS.values())
    return sorted(every, key=lambda column: (_rank(column[0]), column[0], labels.index(column[1])))


def _rank(split: str) -> int:
    return 0 if split == TRAIN else 2 if split.startswith(TEST) else 1


def _extent(sides: Sequence[int]) -> str:
    """`512`, or `103 to 632`."""
    if not sides:
        return "-"
    low, high = min(sides), max(sides)
    return str(low) if low == high else f"{low} to {high}"


def _examples(found: list[Finding]) -> str:
    lines = [str(finding) for finding in found[:_EXAMPLES]]
    more = len(found) - len(lines)
    return "\n".join([*lines, *([f"and {more} more"] if more else [])])
