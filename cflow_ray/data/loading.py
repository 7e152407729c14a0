"""Images of a data set read and prepared a few ahead, so that storage latency hides behind the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cflow_ray.config import InputConfig
from cflow_ray.data.images import PreparedImage, prepare
from cflow_ray.data.samples import Sample
from cflow_ray.errors import ImageError
from cflow_ray.store.ahead import computed_ahead
from cflow_ray.store.storage import Storage

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
