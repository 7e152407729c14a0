"""The one yardstick of both sides: AUROC over images and over all pixels, masks read alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score


class Truth:
    """The test images of a category in MVTec AD layout with their labels and masks."""

    def __init__(self, root: str, category: str, side: int) -> None:
        folder = Path(root) / category
        found = sorted((folder / "test").glob("*/*.*"))
        self.files = [str(path.relative_to(root)) for path in found]
        self.labels = [path.parent.name != "good" for path in found]
        self._masks = np.stack([_mask(folder, path, side) for path in found])

    def aurocs(self, scores: dict[str, float], maps: dict[str, np.ndarray]) -> dict[str, float]:
        """Image and pixel AUROC of scores and maps (side, side) by file below the root."""
        image = roc_auc_score(self.labels, [scores[file] for file in self.files])
        pixel = roc_auc_score(self._masks.ravel(), np.stack([maps[file] for file in self.files]).ravel())
        return {"image_auroc": round(float(image), 4), "pixel_auroc": round(float(pixel), 4)}


def _mask(folder: Path, file: Path, side: int) -> np.ndarray:
    """Which pixels of an image are defect, nearest neighbour at (side, side); none of a good one."""
    if file.parent.name == "good":
        return np.zeros((side, side), dtype=bool)
    found = next((folder / "ground_truth" / file.parent.name).glob(f"{file.stem}*"))
    with Image.open(found) as image:
        return np.asarray(image.convert("L").resize((side, side), Image.Resampling.NEAREST)) > 0
