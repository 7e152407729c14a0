"""How far a category is, as its worker reports it: encoding images, the steps of its levels, the test images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cflow_ray.model.progress import FitProgress


@dataclass(frozen=True)
class CategoryProgress:
    """One look at a category in hand."""

    images: int
    """Read and encoded so far."""
    of_images: int
    images_per_second: float
    fit: FitProgress | None = None
    """The level that reported last; None while images are encoded."""
    share: float = 0.0
    """Of all steps of all levels, models and seeds."""
    seconds_left: float | None = None
    """Estimated from the steps so far; None before the first."""
    tested: int = 0
    """Test images scored so far."""
    of_test_images: int = 0
    """0 until a fit has ended."""


class CategoryMeter:
    """Turns what happens in a fit into looks at it; levels may report from several threads."""

    def __init__(self, images: int, fits: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`images` to encode, then `fits` one after the other, each from the levels' first to their last step."""
        self._of_images = images
        self._fits = fits
        self._clock = clock
        self._start = clock()
        self._images = 0
        self._rate = 0.0
        self._fit_start: float | None = None
        self._first_share = 0.0
        self._lock = threading.Lock()
        self._share_of: dict[tuple[int, int, int], float] = {}  # (fit, model, level) -> share of its steps

    def encoded(self) -> CategoryProgress:
        """One image more is encoded."""
        self._images += 1
        self._rate = self._images / max(self._clock() - self._start, 1e-9)
        return CategoryProgress(self._images, self._of_images, self._rate)

    def stepped(self, number: int, progress: FitProgress) -> CategoryProgress:
        """A level of fit `number` has taken some steps."""
        with self._lock:
            return self._stepped(number, progress)

    def _stepped(self, number: int, progress: FitProgress) -> CategoryProgress:
        self._share_of[number, progress.model, progress.level] = progress.step / progress.steps
        finished = number * progress.models + progress.model  # models before this one, even if they were restored
        now = [share for (fit, model, _), share in self._share_of.items() if (fit, model) == (number, progress.model)]
        share = (finished + sum(now) / progress.levels) / (self._fits * progress.models)
        if self._fit_start is None:
            self._fit_start, self._first_share = self._clock(), share
        passed, gained = self._clock() - self._fit_start, share - self._first_share
        left = passed / gained * (1 - share) if gained > 0 else None
        return CategoryProgress(self._images, self._of_images, self._rate, progress, share, left)

    def tested(self, number: int, images: int, of_images: int) -> CategoryProgress:
        """Fit `number` has ended, and so many of its test images are scored."""
        share = (number + 1) / self._fits
        return CategoryProgress(
            self._images, self._of_images, self._rate, share=share, tested=images, of_test_images=of_images
        )
