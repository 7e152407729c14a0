"""Which rows of a score table count, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from cflow_ray.config import EvaluateConfig
from cflow_ray.errors import DataError
from cflow_ray.evaluation.evaluate import evaluate
from cflow_ray.store.results import SCORE_SCHEMA

SCORES = {
    "screw/test/good/0.png": 0.2,
    "screw/test/good/1.png": 0.5,
    "screw/test/good/2.png": 0.3,
    "screw/test/bent/0.png": 0.4,
    "screw/test/bent/1.png": 0.9,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of one category: three training images, and the test images above."""
    buffer = BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    for path in (*SCORES, *(f"screw/train/good/{number}.png" for number in range(3))):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(buffer.getvalue())
    return tmp_path / "data"


def table(folder: Path, rows: Iterable[tuple[str, float, str | None]]) -> Path:
    """A score table of some keys, scores and errors."""
    of_image = {"frame": [0, 0, 8, 8], "width": 8, "height": 8}
    found = [
        of_image | {"image_id": str(number), "key": key, "score": score, "error": error}
        for number, (key, score, error) in enumerate(rows)
    ]
    part = folder / "shard=a-1" / "part-000000000.parquet"
    part.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(found, schema=SCORE_SCHEMA), part)
    return folder


def config(data: Path, results: Path, **more: Any) -> EvaluateConfig:
    return EvaluateConfig(data=str(data), results=str(results), **more)


def test_the_figures_are_those_of_the_labelled_test_images(data: Path, tmp_path: Path) -> None:
    results = table(tmp_path / "scores", ((key, score, None) for key, score in SCORES.items()))
    (found,) = evaluate(config(data, results)).values()
    assert found.images == 5
    assert found.image_auroc == pytest.approx(roc_auc_score([0, 0, 0, 1, 1], list(SCORES.values())))


def test_training_images_errors_strangers_and_repeats_do_not_count(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[tuple[str, float, str | None]] = [(key, score, None) for key, score in SCORES.items()]
    (alone,) = evaluate(config(data, table(tmp_path / "alone", rows))).values()
    rows += [(f"screw/train/good/{number}.png", 0.0, None) for number in range(3)]
    rows += [("screw/test/good/0.png", 0.99, None), ("elsewhere.png", 0.99, None)]
    rows += [("screw/test/bent/1.png", 0.0, "truncated")]
    (found,) = evaluate(config(data, table(tmp_path / "more", rows))).values()
    assert found == alone
    assert "1 rows repeat an image" in caplog.text
    assert "no score" not in caplog.text


def test_only_images_to_test_on_count(data: Path, tmp_path: Path) -> None:
    """MVTec LOCO's `validation` is neither trained nor tested on."""
    lines = ["image,category,split,label"]
    lines += [f"{key},screw,test,{int('bent' in key)}" for key in SCORES]
    lines += [f"screw/train/good/{number}.png,screw,{'train' if number else 'validation'},0" for number in range(3)]
    (data / "images.csv").write_text("\n".join(lines))
    rows: list[tuple[str, float, str | None]] = [(key, score, None) for key, score in SCORES.items()]
    results = table(tmp_path / "scores", [*rows, ("screw/train/good/0.png", 0.99, None)])
    (found,) = evaluate(config(data / "images.csv", results, layout="table")).values()
    assert found.images == 5


@pytest.mark.parametrize("error", [None, "truncated"])
def test_test_images_without_a_score_are_warned_of(
    data: Path, tmp_path: Path, error: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[tuple[str, float, str | None]] = [(key, score, None) for key, score in SCORES.items()]
    last = [] if error is None else [(rows[-1][0], 0.0, error)]
    (found,) = evaluate(config(data, table(tmp_path / "scores", [*rows[:-1], *last]))).values()
    assert found.images == 4
    assert (
        "screw: 1 of 5 labelled test images have no score and do not count, such as screw/test/bent/1.png"
        in caplog.text
    )


def test_a_table_without_a_test_image_is_refused(data: Path, tmp_path: Path) -> None:
    results = table(tmp_path / "scores", [("screw/train/good/0.png", 0.1, None)])
    with pytest.raises(DataError, match="is a test image of"):
        evaluate(config(data, results))
