"""Image files themselves: those below a folder or in a manifest, in groups of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.index import Member, ShardIndex
from cflow_ray.data.archives.records import Record, too_large
from cflow_ray.data.archives.shards import Shard
from cflow_ray.errors import CflowRayError, StorageError
from cflow_ray.store.ahead import REQUESTS, computed_ahead
from cflow_ray.store.storage import Storage

GROUP = 10_000
"""Most images of one shard, whose index every reader of it holds."""


def grouped_images(uri: str, members: Sequence[Member]) -> Iterator[tuple[Shard, ShardIndex]]:
    """Images below a folder as shards of at most `GROUP`, in the order given."""
    index = ShardIndex.of(members)  # a key is a repeat in whichever group it comes again
    for number, first in enumerate(range(0, len(members), GROUP)):
        group = number if len(members) > GROUP else None
        yield Shard(uri, "images", group), ShardIndex(index.members[first : first + GROUP])


def read_images(storage: Storage, members: Sequence[Member], how: ReadConfig) -> Iterator[Record]:
    """Successive image files; several of a remote store are asked for at once."""

    def read(member: Member) -> bytes | CflowRayError:
        if unusable := member.error or too_large(member.size, how):
            return unusable
        try:
            return storage.read(member.key)
        except StorageError as error:
            return error

    if storage.is_local:
        yield from (Record(member.key, read(member), member.fields) for member in members)
        return
    for member, content in zip(members, computed_ahead(read, members, REQUESTS), strict=True):
        yield Record(member.key, content, member.fields)
