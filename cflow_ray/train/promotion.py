"""Which version of a category becomes the best after a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cflow_ray.config import Promotion
from cflow_ray.errors import CheckpointError
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.train.likelihood import mean_nll
from cflow_ray.train.task import Outcome

NllOf = Callable[[str], float]
"""The negative log-likelihood, under a version, of the images held out of the fit that has just ended."""


def promote(
    registry: Registry, category: str, version: str, rule: Promotion, nll_of: NllOf | None = None
) -> tuple[bool, str]:
    """Move the category's pointer by the rule; whether `version` is the best now, and why.

    Without `nll_of` the rule `better-than-current` promotes no version of other data than the current one's.
    """
    chosen, reason = _choice(registry, category, version, rule, nll_of)
    if chosen is not None:
        registry.promote(category, chosen)
    return chosen == version, reason


def promote_reused(registry: Registry, outcome: Outcome, rule: Promotion) -> Outcome:
    """Move the pointer by the rule to a reused version that was finished after it last moved, or say why it stays.

    The run of that version was cut off before the rule was asked, or had another rule. What was promoted or rolled back
    since stands.
    """
    category, version = outcome.category, outcome.version
    if version is None or outcome.promoted or rule == "never":
        return outcome
    current = registry.pointer_if_there(category)
    if current is not None and not "" < current.promoted < registry.manifest(category, version).created:
        return outcome
    is_best, reason = promote(registry, category, version, rule)
    return replace(outcome, promoted=is_best, notes=(*outcome.notes, *([reason] if reason else [])))


def _choice(
    registry: Registry, category: str, version: str, rule: Promotion, nll_of: NllOf | None
) -> tuple[str | None, str]:
    if rule == "never":
        return None, "not promoted: promote is never"
    current = registry.pointer_if_there(category)
    if rule == "newest" or current is None:
        return version, ""
    if rule == "best-nll":
        return _lowest_nll(registry, category, version)
    return _better_than(registry, category, version, current.version, nll_of)


def _lowest_nll(registry: Registry, category: str, version: str) -> tuple[str | None, str]:
    """Of the versions that were fitted from the same data and see them through the same features.

    Each by the images that were held out of it: others with another seed, unless `split_seed` is the same.
    """
    new = registry.manifest(category, version)
    known: dict[str, float] = {}
    for name in registry.versions(category):
        try:
            manifest = registry.manifest(category, name)
        except CheckpointError:
            continue
        nll = mean_nll(manifest)
        if nll is not None and manifest.data_digest == new.data_digest and _same_features(manifest, new):
            known[name] = nll
    lowest = min(known, key=lambda name: known[name], default=version)
    if lowest == version:
        return version, ""
    return lowest, f"{lowest} stays the best: held-out NLL {known[lowest]:.4f}, the new one {known[version]:.4f}"


def _better_than(
    registry: Registry, category: str, version: str, current: str, nll_of: NllOf | None
) -> tuple[str | None, str]:
    """The new version where the present images are likelier under it than under the current one.

    Of two that were fitted from the same data each is seen by the images it held out: most of the other's it trained on.
    """
    new, old = registry.manifest(category, version), registry.manifest(category, current)
    if not _same_features(new, old):
        return None, f"not promoted: {current} has another encoder or input, so likelihoods do not compare"
    ours, theirs = mean_nll(new), mean_nll(old)
    if new.data_digest != old.data_digest or ours is None or theirs is None:
        if nll_of is None:
            return None, f"not promoted: {current} has other data, so only a fit (--force) can tell which is better"
        ours, theirs = map(nll_of, (version, current))
    if ours < theirs:
        return version, f"better than {current}: held-out NLL {ours:.4f} against {theirs:.4f}"
    return None, f"not promoted: held-out NLL {ours:.4f}, {current} has {theirs:.4f}"


def _same_features(one: Manifest, other: Manifest) -> bool:
    """Whether two versions describe the same features of an image, so that their likelihoods compare."""
    return (
        one.encoder_digest == other.encoder_digest
        and one.detector.encoder.architecture == other.detector.encoder.architecture
        and one.detector.input == other.detector.input
        and one.detector.region == other.detector.region
    )
