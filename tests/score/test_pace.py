"""The batch size that is found: the smallest that is about as fast as any, within memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from cflow_ray.score.pace import BatchSize


def settled(seconds: Callable[[int], float], free: float = 0.5, batches: int = 60) -> int:
    """The size after many full batches that take `seconds(size)` each."""
    size = BatchSize("auto", lambda: free)
    for _ in range(batches):
        size.took(size.now, seconds(size.now))
    return size.now


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        (lambda n: 0.03 * n, 4),  # a processor: no gain
        (lambda n: 0.1 + 0.001 * n, 128),  # a fixed cost of every batch
        (lambda n: 0.01 * math.ceil(n / 32), 32),  # whole waves of 32
        (lambda n: 0.01 * n if n <= 8 else 0.05 * n, 4),  # slower beyond some size
    ],
)
def test_a_batch_grows_while_that_pays(seconds: Callable[[int], float], size: int) -> None:
    assert settled(seconds) == size


def test_a_batch_does_not_grow_where_memory_is_short() -> None:
    assert settled(lambda n: 0.1 + 0.001 * n, free=0.05) == 4


def test_the_first_batch_of_a_size_does_not_count() -> None:
    size = BatchSize("auto", lambda: 0.5)
    for seconds in (100.0, 0.4, 0.4, 0.4):  # of 4: compiled in the first
        size.took(4, seconds)
    assert size.now == 8
    for seconds in (100.0, 0.4, 0.4, 0.4):
        size.took(8, seconds)
    assert size.now == 16


def test_batches_that_are_not_full_tell_nothing() -> None:
    size = BatchSize("auto", lambda: 0.5)
    for _ in range(50):
        size.took(3, 0.001)
    assert size.now == 4


def test_a_size_that_is_given_stays() -> None:
    size = BatchSize(16)
    for _ in range(50):
        size.took(16, 1.0)
    assert size.now == 16
