"""Versions by the likelihood of the images that were held out of their fits, as their manifests keep it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean

from cflow_ray.store.manifest import Manifest


def mean_nll(manifest: Manifest) -> float | None:
    """Held-out negative log-likelihood per dimension, mean of the levels; None where it was not kept."""
    return fmean(manifest.nll) if manifest.nll else None


def likeliest(manifests: Iterable[Manifest]) -> Manifest:
    """The one with the lowest held-out negative log-likelihood; those that did not keep it come last."""
    return min(manifests, key=lambda manifest: math.inf if (nll := mean_nll(manifest)) is None else nll)
