"""Images of a data set read and prepared a few ahead, so that storage latency hides behind the encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from cflow_ray.config import InputConfig
from cflow_ray.data.images import PreparedImage, prepare
from cflow_ray.data.samples import Sample
from cflow_ray.errors import ImageError
from cflow_ray.store.storage import Storage

_THREADS = 4
_AHEAD = 16

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

    remaining = iter(samples)
    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque[Future[Loaded]] = deque(pool.submit(load, sample) for sample in islice(remaining, _AHEAD))
        while pending:
            loaded = pending.popleft().result()
            pending.extend(pool.submit(load, sample) for sample in islice(remaining, 1))
            yield loaded
