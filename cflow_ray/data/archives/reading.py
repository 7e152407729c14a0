"""Index and records of a shard, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.images import read_images
from cflow_ray.data.archives.index import Member, ShardIndex
from cflow_ray.data.archives.parquet import read_parquet_index, read_parquet_records
from cflow_ray.data.archives.records import Record
from cflow_ray.data.archives.shards import Shard
from cflow_ray.data.archives.tar import read_tar_index, read_tar_records
from cflow_ray.data.archives.tar_gz import stream_tar_gz
from cflow_ray.data.archives.zip import read_zip_index, read_zip_records
from cflow_ray.store.storage import Storage, split_uri


def is_streamed(shard: Shard) -> bool:
    """Whether a shard has no index and is read from its start by `stream_records`."""
    return shard.kind == "tar.gz"


def read_index(shard: Shard, storage_options: Mapping[str, Any], how: ReadConfig) -> ShardIndex:
    """The records of an archive that has an index: a tar, a zip or a Parquet file."""
    storage, name = _place(shard, storage_options)
    if shard.kind == "tar":
        return read_tar_index(storage, name)
    if shard.kind == "zip":
        return read_zip_index(storage, name)
    assert shard.kind == "parquet", shard
    return read_parquet_index(storage, name, how)


def read_records(
    shard: Shard, members: Sequence[Member], storage_options: Mapping[str, Any], how: ReadConfig
) -> Iterator[Record]:
    """Successive records of a shard, members of its index; one that cannot be read has its error as content."""
    if not members:
        return
    if shard.kind == "images":
        yield from read_images(Storage(shard.uri, storage_options), members, how)
        return
    storage, name = _place(shard, storage_options)
    reader = {"tar": read_tar_records, "zip": read_zip_records, "parquet": read_parquet_records}[shard.kind]
    yield from reader(storage, name, members, how)


def stream_records(shard: Shard, storage_options: Mapping[str, Any], how: ReadConfig) -> Iterator[Record]:
    """All records of a shard that is streamed, and one more that says so where it is damaged."""
    storage, name = _place(shard, storage_options)
    yield from stream_tar_gz(storage, name, how)


def _place(shard: Shard, storage_options: Mapping[str, Any]) -> tuple[Storage, str]:
    folder, name = split_uri(shard.uri)
    return Storage(folder, storage_options), name
