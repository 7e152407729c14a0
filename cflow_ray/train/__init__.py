"""Fit the detectors of many categories in one Ray Train run."""

from cflow_ray.train.run import fit

__all__ = ["fit"]
