"""Packing the images of a data set into tar shards whose record keys are the images' paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cflow_ray.config import PackConfig
from cflow_ray.data.archives import write_shards
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.samples import DataSet, Sample
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote."""

    output: str
    shards: tuple[str, ...]
    records: int


def pack(config: PackConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> Packed:
    """Write the chosen images into `<output>/<split>-<number>.tar`, with an index beside each.

    The same data give the same shards. Raises DataError where nothing is to be packed, StorageError where an image
    cannot be read; images are not decoded.
    """
    data_set = read_data_set(config, config.storage_options)
    categories = data_set.chosen(config.only)
    samples = [sample for category in categories for sample in data_set.of(category, config.split)]
    if not samples:
        splits = sorted({sample.split for sample in data_set.samples})
        raise DataError(f"no image of split {config.split!r} in {config.data}; its splits are {', '.join(splits)}.")
    records = _records(data_set, samples, progress)
    output = Storage(config.output, config.storage_options)
    shards = write_shards(records, output, config.split or "all", config.shard_size)
    return Packed(config.output, tuple(shards), len(samples))


def _records(
    data_set: DataSet, samples: Sequence[Sample], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, bytes]]:
    for number, sample in enumerate(samples, start=1):
        yield sample.image, data_set.root.read(sample.image)
        progress(number, len(samples))
