"""The work of a category orders categories as their fits take."""

from __future__ import annotations

import pytest

from cflow_ray.config import DetectorConfig
from cflow_ray.data.samples import TEST, TRAIN, Sample
from cflow_ray.train.work import work_of


def work(images: int, tests: int = 0, seeds: int = 1, **settings: object) -> float:
    splits = [TRAIN] * images + [TEST] * tests
    samples = [Sample(f"{number}.png", "grid", split, 0) for number, split in enumerate(splits)]
    return work_of(samples, DetectorConfig.model_validate({"recipe": "fast"} | settings), seeds)


def test_few_images_whose_calibration_takes_folds_are_more_work_than_many_without() -> None:
    """CPU seconds on one core, 60 + 84 images by folds against 240 + 84 without: 176 and 52."""
    assert work(60, 84) / work(240, 84) == pytest.approx(176 / 52, rel=0.35)
    assert work(60, calibration="split") < work(240, calibration="split")


@pytest.mark.parametrize(
    "more",
    [
        {"images": 300},
        {"tests": 50},
        {"seeds": 2},
        {"input_size": 512},
        {"recipe": "best"},
        {"recipe": "paper"},
        {"encoder": {"strides": (4, 8, 16, 32)}},
    ],
)
def test_more_of_anything_is_more_work(more: dict[str, object]) -> None:
    assert work(**({"images": 240} | more)) > work(240)  # type: ignore[arg-type]


def test_levels_by_blocks_count_each() -> None:
    vit = "vit_small_patch16_224"
    few, many = (work(240, encoder={"name": vit, "blocks": blocks}) for blocks in ((8,), (2, 5, 8)))
    assert many > few
