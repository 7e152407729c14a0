"""How far a fit is; plain numbers, so that whoever watches needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FitProgress:
    """Where a fit is: level and step, of how many, and the held-out negative log-likelihood per dimension (nats).

    A cross-calibrated category is fitted `models` times, the last time for good.
    """

    level: int
    levels: int
    step: int
    steps: int
    nll: float
    model: int = 0
    models: int = 1
    loss: float | None = None
    """Of the last step, before it."""
    rate: float | None = None
    """Learning rate of the last step."""
