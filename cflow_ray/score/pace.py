"""How many images a scoring actor takes in one batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

_FIRST, _MOST = 4, 128
_BATCHES = 3  # of a size that are timed, after one that may compile or load
_GAIN = 1.05  # by which twice the images must be faster
_FREE_SHARE = 0.1  # of the node's memory, below which a batch does not grow


def _free_share() -> float:
    """Of the node's memory what programs could still have; 1 where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    except OSError:
        return 1.0
    return int(lines["MemAvailable"].split()[0]) / int(lines["MemTotal"].split()[0])


class BatchSize:
    """A fixed number, or one that doubles from 4 to 128 while that scores images at least 5 % faster.

    It stops growing where less than a tenth of the node's memory is free, and keeps the fastest size from then on.
    """

    def __init__(self, setting: int | Literal["auto"], free_share: Callable[[], float] = _free_share) -> None:
        self._free_share = free_share
        self._settled = setting != "auto"
        self.now = _FIRST if setting == "auto" else int(setting)
        """Images of the next batch."""
        self._times: list[float] = []
        self._best: tuple[float, int] | None = None

    def took(self, images: int, seconds: float) -> None:
        """Tell what a batch took; those that were not full, the last of a chunk, tell nothing."""
        if self._settled or images != self.now:
            return
        self._times.append(seconds / images)
        if len(self._times) <= _BATCHES:
            return
        per_image = min(self._times[1:])
        self._times.clear()
        if self._best is not None and per_image * _GAIN > self._best[0]:
            self._settle(self._best[1])
        elif 2 * self.now > _MOST or self._free_share() < _FREE_SHARE:
            self._settle(self.now)
        else:
            self._best = (per_image, self.now)
            self.now *= 2

    def _settle(self, size: int) -> None:
        self.now, self._settled = size, True
