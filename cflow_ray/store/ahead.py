"""Work done a few items ahead of whoever takes its results, so that a store's latency hides behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

REQUESTS = 8
"""Threads that wait for a store, which answers each request only after some milliseconds."""
_THREADS = 4
_AHEAD = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def computed_ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int = _THREADS) -> Iterator[Result]:
    """What `work` gives for each item, in order; threads are at most 16 items ahead of whoever takes the results."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(remaining, _AHEAD))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(remaining, 1))
            yield result
