"""Images of a data set read and prepared a few ahead, so that storage latency hides behind the encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from cflow_ray.config import InputConfig
from cflow_ray.data.images import PreparedImage, prepare
from cflow_ray.data.samples import Sample
from cflow_ray.errors import ImageError
from cflow_ray.store.storage import Storage

REQUESTS = 8
"""Threads that wait for a store, which answers each request only after some milliseconds."""
_THREADS = 4
_AHEAD = 16

Item = TypeVar("Item")
Result = TypeVar("Result")
Loaded = tuple[Sample, PreparedImage | ImageError]


def load_images(root: Storage, samples: Iterable[Sample], config: InputConfig) -> Iterator[Loaded]:
    """Each sample with its image, in order; one that is no readable image comes with its ImageError instead.

    Raises StorageError where a file cannot be fetched at all.
    """

    def load(sample: Sample) -> Loaded:
        try:
            return sample, prepare(root.read(sample.image), config)
        except ImageError as error:
            return sample, error

    return computed_ahead(load, samples)


def computed_ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int = _THREADS) -> Iterator[Result]:
    """What `work` gives for each item, in order; threads are at most 16 items ahead of whoever takes the results."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(remaining, _AHEAD))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(remaining, 1))
            yield result
