"""The paper's score: its formula, its dependence on the set, and that it is only had when asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.transform
import torch
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from cflow_ray.cli import main
from cflow_ray.config import DataConfig, EvaluateConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import decode_mask, prepare
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.evaluation.paper import PaperFigures, evaluate_as_the_paper, paper_figures, paper_score
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import SCORE_SCHEMA
from cflow_ray.store.storage import Storage


def likelihoods(images: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, side, side, generator=generator) - 2 for side in (8, 4)]


def test_scores_and_maps_are_those_of_the_official_code() -> None:
    """`test_meta_epoch`: normalise by the set's maximum, exponentiate, upsample, add the levels, subtract from the top."""
    levels = likelihoods(3)
    total = np.zeros((3, 16, 16))
    for level in levels:
        p = np.exp(level.double().numpy() - float(level.max()))
        at = np.linspace(0, p.shape[1] - 1, 16)  # align_corners=True
        rows, columns = np.meshgrid(at, at, indexing="ij")
        total += np.stack([skimage.transform.warp(one, np.stack([rows, columns]), order=1) for one in p])
    expected = (total.max() - total) / len(levels)
    score_I, map_IHW = paper_score(levels, (16, 16))
    np.testing.assert_allclose(map_IHW.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(score_I.numpy(), expected.reshape(3, -1).max(1), atol=1e-5)
    assert map_IHW.min() >= 0
    assert map_IHW.max() <= 1


def test_a_score_depends_on_the_set_which_is_why_nothing_else_uses_it() -> None:
    levels = likelihoods(6)
    together, _ = paper_score(levels, (16, 16))
    alone, _ = paper_score([level[:1] for level in levels], (16, 16))
    assert abs(float(together[0] - alone[0])) > 1e-3


def test_it_asks_for_the_registry(tmp_path) -> None:
    with pytest.raises(ConfigError, match="--registry"):
        evaluate_as_the_paper(EvaluateConfig(data=str(tmp_path), results=str(tmp_path), paper_score=True))


def test_a_registry_without_the_categories_is_told(tmp_path) -> None:
    (tmp_path / "data" / "screw" / "test" / "good").mkdir(parents=True)
    (tmp_path / "data" / "screw" / "test" / "good" / "0.png").write_bytes(b"x")
    Registry.create(Storage(str(tmp_path / "registry")))
    config = EvaluateConfig(data=str(tmp_path / "data"), results="r", registry=str(tmp_path / "registry"))
    with pytest.raises(DataError, match=r"detectors of screw; .*registry holds none"):
        evaluate_as_the_paper(config)


def evaluated(miniature: Path, registry: Path, **more: Any) -> PaperFigures:
    config = EvaluateConfig(data=str(miniature), results="r", registry=str(registry), **more)
    (figures,) = evaluate_as_the_paper(config).values()
    return figures


def test_the_figures_are_those_of_the_score_over_all_test_images(miniature: Path, registry: Path) -> None:
    """By hand: every test image through the registry's detector, the paper's score over all, scikit-learn's AUROC."""
    opened = Registry(Storage(str(registry)))
    detector = opened.detector("brick", opened.best("brick"))
    encoder = opened.encoder(detector.config.encoder, detector.encoder_digest)
    size, of_image, labels, masks = detector.config.size, [], [], []
    for path in sorted((miniature / "brick" / "test").rglob("*.png")):
        image = torch.from_numpy(prepare(path.read_bytes(), detector.config.input).pixels_3HW)
        of_image.append(detector.likelihoods(encoder(image[None])))
        labels.append(path.parent.name != "good")
        mask = miniature / "brick" / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        masks.append(decode_mask(mask.read_bytes(), size) if labels[-1] else np.zeros(size, dtype=bool))
    score_I, map_IHW = paper_score([torch.cat(level) for level in zip(*of_image, strict=True)], size)
    found = evaluated(miniature, registry)
    assert found.image_auroc == pytest.approx(roc_auc_score(labels, score_I.numpy()), abs=1e-6)
    expected = roc_auc_score(np.stack(masks).ravel(), map_IHW.numpy().ravel())
    assert found.pixel_auroc == pytest.approx(expected, abs=1e-5)


def test_a_region_of_interest_is_refused(miniature: Path, registry: Path) -> None:
    """Outside of it nothing was fitted, and the score's maxima would be taken there."""
    opened = Registry(Storage(str(registry)))
    detector = opened.detector("brick", opened.best("brick"))
    encoder = opened.encoder(detector.config.encoder, detector.encoder_digest)
    detector.region_HW = torch.ones(detector.config.size, dtype=torch.bool)
    data_set = read_data_set(DataConfig(data=str(miniature)), {})
    with pytest.raises(ConfigError, match="brick has a region of interest"):
        paper_figures(data_set, "brick", encoder, detector)


def test_without_a_defect_or_without_labels_there_is_no_figure(miniature: Path, registry: Path, tmp_path: Path) -> None:
    good = tmp_path / "good" / "brick"
    shutil.copytree(miniature / "brick" / "train", good / "train")
    assert evaluated(good.parent, registry) == PaperFigures(None, None)
    shutil.copytree(miniature / "brick" / "test" / "good", good / "test" / "good")
    assert evaluated(good.parent, registry) == PaperFigures(None, None)


def test_the_command_shows_the_papers_score_beside_the_table(miniature: Path, registry: Path, tmp_path: Path) -> None:
    tests = sorted((miniature / "brick" / "test").rglob("*.png"))
    of_image = {"score": 0.5, "frame": [0, 0, 96, 96], "width": 96, "height": 96}
    keys = [str(path.relative_to(miniature)) for path in tests]
    rows = [of_image | {"image_id": key, "key": key} for key in keys]
    (tmp_path / "shard=a-1").mkdir()
    part = tmp_path / "shard=a-1" / "part-000000000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), part)
    arguments = ["evaluate", str(tmp_path), "--data", str(miniature), "--registry", str(registry), "--paper-score"]
    shown = CliRunner().invoke(main, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    of_brick = json.loads(shown.stdout)["paper_score"]["brick"]
    assert of_brick == pytest.approx(asdict(evaluated(miniature, registry)))
    words = " ".join(CliRunner().invoke(main, arguments).stdout.split())
    assert "maximum over the test set, for comparison only" in words
