"""Published figures of CFLOW-AD on MVTec AD, to print beside one's own.

Gudovskiy, Ishizaka, Kozuka: CFLOW-AD, WACV 2022 (arXiv 2107.12571), per-category tables for WideResNet-50, input size per
category. Their protocol: the best epoch on the test set for each metric, scores scaled by the test set's maximum.
"""

from __future__ import annotations

MVTEC_AD = (
    *("carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)
"""The 15 categories, textures first, in the paper's order."""

_IMAGE = (
    *(98.73, 99.60, 100.0, 99.88, 99.12, 100.0, 97.59, 97.68, 99.98, 99.26),
    *(96.82, 91.89, 99.65, 95.21, 98.48),
)
_PIXEL = (
    *(99.25, 98.99, 99.66, 98.01, 96.65, 98.98, 97.64, 98.98, 98.89, 98.56),
    *(98.95, 98.86, 98.93, 97.99, 99.08),
)

PAPER_WRN50: dict[str, dict[str, float]] = {
    "image_auroc": {name: value / 100 for name, value in zip(MVTEC_AD, _IMAGE, strict=True)},
    "pixel_auroc": {name: value / 100 for name, value in zip(MVTEC_AD, _PIXEL, strict=True)},
}
"""AUROC in [0, 1] by metric and category; the paper gives no pixel F1."""
