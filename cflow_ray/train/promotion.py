"""Which version of a category becomes the best after a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from cflow_ray.config import Promotion
from cflow_ray.errors import CheckpointError
from cflow_ray.model.calibration import held_out_likelihood
from cflow_ray.model.features import Features
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.train.likelihood import mean_nll


@dataclass(frozen=True)
class HeldOutImages:
    """The normal images that chose the steps of a fit."""

    features: Features
    images: Sequence[int]
    region_HW: Tensor | None


def promote(
    registry: Registry, category: str, version: str, rule: Promotion, held_out: HeldOutImages
) -> tuple[bool, str]:
    """Move the category's pointer by the rule; whether `version` is the best now, and why."""
    chosen, reason = _choice(registry, category, version, rule, held_out)
    if chosen is not None:
        registry.promote(category, chosen)
    return chosen == version, reason


def _choice(
    registry: Registry, category: str, version: str, rule: Promotion, held_out: HeldOutImages
) -> tuple[str | None, str]:
    if rule == "never":
        return None, "not promoted: promote is never"
    current = registry.pointer_if_there(category)
    if rule == "newest" or current is None:
        return version, ""
    if rule == "best-nll":
        return _lowest_nll(registry, category, version)
    return _better_than(registry, category, version, current.version, held_out)


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
    registry: Registry, category: str, version: str, current: str, held_out: HeldOutImages
) -> tuple[str | None, str]:
    """The new version where the present images are likelier under it than under the current one.

    Of two that were fitted from the same data each is seen by the images it held out: most of the other's it trained on.
    """
    new, old = registry.manifest(category, version), registry.manifest(category, current)
    if not _same_features(new, old):
        return None, f"not promoted: {current} has another encoder or input, so likelihoods do not compare"
    ours, theirs = mean_nll(new), mean_nll(old)
    if new.data_digest != old.data_digest or ours is None or theirs is None:
        ours, theirs = (_nll(registry, category, name, held_out) for name in (version, current))
    if ours < theirs:
        return version, f"better than {current}: held-out NLL {ours:.4f} against {theirs:.4f}"
    return None, f"not promoted: held-out NLL {ours:.4f}, {current} has {theirs:.4f}"


def _nll(registry: Registry, category: str, version: str, held_out: HeldOutImages) -> float:
    decoders = registry.fitted(category, version).decoders
    return fmean(held_out_likelihood(decoders, held_out.features, held_out.images, held_out.region_HW).nll)


def _same_features(one: Manifest, other: Manifest) -> bool:
    """Whether two versions describe the same features of an image, so that their likelihoods compare."""
    return (
        one.encoder_digest == other.encoder_digest
        and one.detector.encoder == other.detector.encoder
        and one.detector.input == other.detector.input
        and one.detector.region == other.detector.region
    )
