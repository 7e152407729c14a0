"""Archives of many records that are few images over and over, by reference: a night's number without its bytes."""

from __future__ import annotations

from collections.abc import Sequence

from cflow_ray.data.archives import INDEX_SUFFIX, Member, ShardIndex, write_shards
from cflow_ray.store.storage import Storage

_SHARD_RECORDS = 10_000


def refer(shards: Storage, category: str, blobs: Sequence[bytes], count: int) -> None:
    """Tars of the blobs whose indexes have so many records in all, each with the bytes of a blob."""
    for number, first in enumerate(range(0, count, _SHARD_RECORDS)):
        files = ((f"{blob_number}.png", blob) for blob_number, blob in enumerate(blobs))
        (tar,) = write_shards(files, shards, f"night-{number:03d}", 2**40)
        written = ShardIndex.from_json(shards.read(tar + INDEX_SUFFIX))
        assert written is not None
        places = [(member.offset, member.size) for member in written.members]
        records = range(first, min(count, first + _SHARD_RECORDS))
        members = [Member(f"{category}/{record:08d}.png", *places[record % len(places)]) for record in records]
        shards.write(tar + INDEX_SUFFIX, ShardIndex(tuple(members)).to_json(shards.size(tar)))
