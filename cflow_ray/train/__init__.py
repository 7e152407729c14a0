"""Fit the detectors of many categories in one Ray Train run."""
