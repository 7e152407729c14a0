"""The figures of one category as values: what is computed, stored, sent and shown; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Metrics:
    """The figures of one category, each in [0, 1]; None where labels or masks do not allow them."""

    image_auroc: float | None = None
    image_ap: float | None = None
    image_f1: float | None = None
    """The largest F1 over all thresholds."""
    image_tpr_at_fpr_01: float | None = None
    """The share of anomalous images found by a threshold that flags at most 1 % of the good ones."""
    image_tpr_at_fpr_05: float | None = None
    """The same with at most 5 %."""
    pixel_auroc: float | None = None
    pixel_ap: float | None = None
    pixel_f1: float | None = None
    aupro: float | None = None
    """Mean overlap of the defects' regions up to a false-positive rate of 0.3, the MVTec reference."""
    aupro_005: float | None = None
    """The same up to 0.05."""
    aupimo: float | None = None
    """Mean over anomalous images of the share found, at rates of 1e-5 to 1e-4 over normal images alone."""
    images: int = 0
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals by the figure's name."""

    @classmethod
    def from_dict(cls, values: Mapping[str, float | None]) -> Metrics:
        """What `as_dict` gave, as a manifest keeps it; a figure that an older release did not have is None."""
        found = {name: values.get(name) for name in FIGURES}
        bounds = {name: (values.get(f"{name}_low"), values.get(f"{name}_high")) for name in FIGURES}
        known = {name: (low, high) for name, (low, high) in bounds.items() if low is not None and high is not None}
        return cls(**found, images=int(values.get("images") or 0), intervals=known)

    def as_dict(self) -> dict[str, float | None]:
        """The figures by name; an interval is two more, `image_auroc_low` and `image_auroc_high`."""
        bounds = {f"{name}_{end}": value for name, pair in self.intervals.items() for end, value in _ends(pair)}
        return {name: getattr(self, name) for name in FIGURES} | {"images": self.images} | bounds


FIGURES = tuple(one.name for one in fields(Metrics) if one.name not in ("images", "intervals"))
"""Names of the figures, those of images first."""


def _ends(pair: tuple[float, float]) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("low", pair[0]), ("high", pair[1])
