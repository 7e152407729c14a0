"""Fit the detectors of many categories in one Ray Train run."""

from cflow_ray.train.category import Outcome
from cflow_ray.train.run import Watch, fit

__all__ = ["Outcome", "Watch", "fit"]
