"""Looks at a fit: images first, then the share of all steps, and the time that is left by what has passed."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cflow_ray.model.progress import FitProgress
from cflow_ray.train.progress import CategoryMeter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_images_are_counted_with_their_rate() -> None:
    clock = Clock()
    meter = CategoryMeter(images=4, fits=1, clock=clock)
    for number in (1, 2):
        clock.now += 0.5
        look = meter.encoded()
        assert (look.images, look.of_images, look.images_per_second) == (number, 4, pytest.approx(2.0))
        assert look.fit is None
        assert look.seconds_left is None


def test_the_share_runs_over_levels_models_and_fits_and_tells_the_time_that_is_left() -> None:
    clock = Clock()
    meter = CategoryMeter(images=1, fits=2, clock=clock)
    shares = []
    for fit in range(2):
        for model in range(3):
            for level in range(2):
                for step in (5, 10):
                    clock.now += 1
                    look = meter.stepped(fit, FitProgress(level, 2, step, 10, 0.0, model, 3))
                    shares.append(look.share)
                    if len(shares) > 1:
                        assert look.seconds_left == pytest.approx(24 - len(shares))
    assert shares == pytest.approx([number / 24 for number in range(1, 25)])


def test_levels_side_by_side_add_up() -> None:
    meter = CategoryMeter(images=1, fits=1)
    meter.stepped(0, FitProgress(0, 2, 5, 10, 0.0))
    assert meter.stepped(0, FitProgress(1, 2, 10, 10, 0.0)).share == pytest.approx(0.75)


def test_levels_report_from_threads_of_their_own() -> None:
    meter = CategoryMeter(images=1, fits=1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # or threads hardly meet
    try:
        with ThreadPoolExecutor(4) as pool:

            def report(level: int) -> None:
                for model in range(400):
                    meter.stepped(0, FitProgress(level, 4, 1, 1, 0.0, model, 400))

            for done in [pool.submit(report, level) for level in range(4)]:
                done.result()
    finally:
        sys.setswitchinterval(before)
    assert meter.stepped(0, FitProgress(0, 4, 1, 1, 0.0, 399, 400)).share == 1


def test_a_fit_that_goes_on_from_a_savepoint_counts_what_is_done_but_not_in_its_pace() -> None:
    clock = Clock()
    meter = CategoryMeter(images=1, fits=1, clock=clock)
    assert meter.stepped(0, FitProgress(0, 1, 80, 100, 0.0)).seconds_left is None
    clock.now = 10.0
    look = meter.stepped(0, FitProgress(0, 1, 90, 100, 0.0))
    assert look.share == pytest.approx(0.9)
    assert look.seconds_left == pytest.approx(10.0)


def test_test_images_are_counted_at_the_end_of_their_fit() -> None:
    meter = CategoryMeter(images=1, fits=2)
    meter.encoded()
    look = meter.tested(0, 3, 7)
    assert (look.images, look.tested, look.of_test_images, look.share) == (1, 3, 7, 0.5)
    assert look.fit is None  # so that who waits for a step does not take this for one
    assert meter.stepped(1, FitProgress(0, 1, 5, 10, 0.0)).of_test_images == 0
