"""The example of docs/evaluate.md: states of pixels that Ray's workers fill and that are added up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cflow_ray.evaluation.binned import BinnedPixels

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

DOCS = Path(__file__).parents[2] / "docs" / "evaluate.md"


def test_the_documented_sum_over_workers_is_one_pass(capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(import ray\n.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    rng = np.random.default_rng(0)
    masks = [np.zeros((40, 40), bool) for _ in range(6)]
    for mask in masks[::2]:
        mask[5:15, 5:20] = True
    images = [(rng.random(mask.shape, dtype=np.float32), mask, not mask.any()) for mask in masks]
    names: dict[str, Any] = {"parts": [images[:1], images[1:4], images[4:]]}
    exec(example, names)
    whole = BinnedPixels()
    for image in images:
        whole.update(*image)
    assert names["total"].compute() == whole.compute()
    assert capsys.readouterr().out.startswith("pixel_auroc 0.")
