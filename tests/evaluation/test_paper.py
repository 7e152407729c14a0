"""The paper's score: its formula, its dependence on the set, and that it is only had when asked for."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.transform
import torch

from cflow_ray.config import EvaluateConfig
from cflow_ray.errors import ConfigError
from cflow_ray.evaluation.paper import evaluate_as_the_paper, paper_score
from cflow_ray.store.registry import Registry
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


def test_an_empty_registry_gives_no_figures(tmp_path) -> None:
    (tmp_path / "data" / "screw" / "test" / "good").mkdir(parents=True)
    (tmp_path / "data" / "screw" / "test" / "good" / "0.png").write_bytes(b"x")
    Registry.create(Storage(str(tmp_path / "registry")))
    config = EvaluateConfig(data=str(tmp_path / "data"), results="r", registry=str(tmp_path / "registry"))
    assert evaluate_as_the_paper(config) == {}
