"""What a check of a data set reports: figures of every category, and findings, some of which hurt a fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cflow_ray.data.images import ImageFacts
from cflow_ray.data.samples import Sample

Kind = Literal[
    "no_training_images",
    "unreadable_training_images",
    "leakage",
    "masks_without_image",
    "similar_categories",
    "unreadable_images",
    "unreadable_masks",
    "duplicates",
    "duplicates_across_categories",
    "anomalies_without_mask",
    "mask_sizes",
]
HURTS_A_FIT: frozenset[Kind] = frozenset(
    {"no_training_images", "unreadable_training_images", "leakage", "masks_without_image", "similar_categories"}
)
"""The kinds with which a fit fails, learns from less than it was given, or shows figures that are too good."""

LABELS: Mapping[int | None, str] = {0: "good", 1: "anomaly", None: "unknown"}


@dataclass(frozen=True)
class Finding:
    """One thing that a person should look at."""

    kind: Kind
    category: str | None
    """Null where it concerns several categories or none."""
    subjects: tuple[str, ...]
    """Paths of the files or, for similar categories, their names; several are of the same content or name."""
    detail: str | None = None

    def __str__(self) -> str:
        return " = ".join(self.subjects) + (f": {self.detail}" if self.detail else "")


@dataclass
class CategoryFigures:
    """How many images of which kind, size and mode a category has."""

    images: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Images by split and label (good, anomaly, unknown)."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Readable images by (width, height)."""
    modes: Counter[str] = field(default_factory=Counter)
    """Readable images by Pillow's mode."""
    masks: int = 0

    def add(self, sample: Sample, facts: ImageFacts | None) -> None:
        """Count an image; without facts it could not be read."""
        self.images[sample.split][LABELS[sample.label]] += 1
        self.masks += sample.mask is not None
        if facts is not None:
            self.sizes[facts.width, facts.height] += 1
            self.modes[facts.mode] += 1

    @property
    def total(self) -> int:
        """All images, readable or not."""
        return sum(labels.total() for labels in self.images.values())

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON; widths and heights as [smallest, largest], null where no image can be read."""
        widths, heights = ([size[side] for size in self.sizes] for side in (0, 1))
        return {
            "images": {split: dict(labels) for split, labels in self.images.items()},
            "masks": self.masks,
            "width": [min(widths), max(widths)] if widths else None,
            "height": [min(heights), max(heights)] if heights else None,
            "sizes": len(self.sizes),
            "modes": dict(self.modes),
        }


@dataclass(frozen=True)
class CheckReport:
    """The outcome of a check."""

    data: str
    categories: Mapping[str, CategoryFigures]
    findings: Sequence[Finding]
    """In the order of their kinds."""

    @property
    def by_kind(self) -> dict[Kind, list[Finding]]:
        """The findings of every kind that has any."""
        found: dict[Kind, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            found[finding.kind].append(finding)
        return dict(found)

    @property
    def hurts_a_fit(self) -> bool:
        """Whether a fit of these images should wait."""
        return any(finding.kind in HURTS_A_FIT for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON, with every finding."""
        return {
            "data": self.data,
            "hurts_a_fit": self.hurts_a_fit,
            "categories": {name: figures.as_dict() for name, figures in self.categories.items()},
            "findings": {
                kind: [{name: value for name, value in asdict(one).items() if name != "kind"} for one in found]
                for kind, found in self.by_kind.items()
            },
        }
