"""What Ray Train is handed to run in its workers.

A module of its own: the driver takes the loops from here without importing what a fit needs, which is seconds of its
start and 300 MB. Networks and metrics are imported where a loop runs.
"""

from __future__ import annotations

from typing import Any


def fit_alone(config: dict[str, Any]) -> None:
    """See `fit_worker`."""
    from cflow_ray.train.worker import fit_worker

    fit_worker(config)


def fit_together(config: dict[str, Any]) -> None:
    """See `fit_share_worker`."""
    from cflow_ray.train.worker import fit_share_worker

    fit_share_worker(config)
