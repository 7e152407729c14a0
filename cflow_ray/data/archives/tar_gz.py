"""Compressed tar files, which have no middle to begin at: one reader streams them from the start."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.index import Member
from cflow_ray.data.archives.records import Record, too_large
from cflow_ray.data.archives.side_cars import fields_of_sides, name_of, owners_of, sample_of, sides_of_names
from cflow_ray.data.archives.tar import damage_at, damaged, member_of_header
from cflow_ray.data.archives.tar_headers import DAMAGE, headers, open_tar
from cflow_ray.data.images import is_image_name
from cflow_ray.errors import CflowRayError, RecordError, StorageError
from cflow_ray.store.storage import Storage

_BUFFER = 2**20
_MOST_HELD = 16  # members of one sample that are kept for their side-cars


def stream_tar_gz(storage: Storage, name: str, how: ReadConfig) -> Iterator[Record]:
    """All records of a compressed tar in order; the last one says so where it is damaged.

    Side-cars must stand beside their image, as WebDataset writes them. Unpacked bytes of members above the limit are
    passed over without being kept.
    """
    seen: set[bytes] = set()  # digests: a key may be a thousand times as long as the bytes that unpack to it
    for record in _with_sides(_members(storage, name, how)):
        digest = blake2b(record.key.encode(), digest_size=16).digest()
        if digest in seen and record.key:
            yield Record(record.key, RecordError("a record before has the same key", "duplicate_key"), record.fields)
        else:
            seen.add(digest)
            yield record


@dataclass
class _Item:
    """A member of the stream that may turn out to be a side-car."""

    member: Member
    content: bytes | CflowRayError


def _members(storage: Storage, name: str, how: ReadConfig) -> Iterator[_Item]:
    try:
        with storage.open(name) as file:
            # Forward only, but for the last block: a buffer above the longest step back spares beginning anew.
            unpacked = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), _BUFFER)
            with open_tar(unpacked) as tar:
                for info in headers(tar):
                    if member := member_of_header(info):
                        yield _Item(member, _content(tar, info, member, how))
                damage = damage_at(unpacked, tar.offset)
        if damage:
            yield _Item(Member(""), RecordError(damage, "damaged_archive"))
    except StorageError as error:
        yield _Item(Member(""), error)
    except (*DAMAGE, zlib.error, gzip.BadGzipFile) as error:
        yield _Item(Member(""), RecordError(damaged(error), "damaged_archive"))
    except OSError as error:
        yield _Item(Member(""), StorageError(f"{storage.join(name)} cannot be read on: {error}"))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, member: Member, how: ReadConfig) -> bytes | CflowRayError:
    if unusable := member.error or too_large(info.size, how):
        return unusable
    file = tar.extractfile(info)
    content = file.read() if file else b""
    if len(content) < info.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.key}")
    return content


def _with_sides(items: Iterator[_Item]) -> Iterator[Record]:
    """Records with the fields of their side-cars, of one WebDataset sample after the other.

    No sample is kept whole, as its members may be all of the archive's (`cam1.000.png`, `cam1.001.png`, ...): each record
    has the side-cars that `_MOST_HELD` members about it hold.
    """
    held: list[_Item] = []
    some_left = False  # images of the sample, so that none of those held is its only one
    for item in items:
        if held and sample_of(item.member.key) != sample_of(held[0].member.key):
            yield from _records_of(held, _owners_of(held, some_left))
            held, some_left = [], False
        held.append(item)
        if len(held) > _MOST_HELD:
            record, held = _first_out(held, some_left)
            some_left = some_left or is_image_name(record.key)
            yield record
    yield from _records_of(held, _owners_of(held, some_left))


def _first_out(held: list[_Item], some_left: bool) -> tuple[Record, list[_Item]]:
    """The first record of those held, and what is held without it and the side-cars that speak of nothing else."""
    owners = _owners_of(held, some_left)
    first = owners.index(None)  # there is one: a side-car has an owner only where its image is held
    record = next(_records_of(held, owners))
    rest = [(item, owner) for number, (item, owner) in enumerate(zip(held, owners, strict=True)) if number != first]
    names = {name_of(item.member.key) for item, owner in rest if owner is None and is_image_name(item.member.key)}
    return record, [item for item, owner in rest if owner is None or owner in names]


def _records_of(held: list[_Item], owners: list[str | None]) -> Iterator[Record]:
    places = sides_of_names([item.member for item in held], owners)
    for item, owner in zip(held, owners, strict=True):
        if owner is None:
            sides = places.get(name_of(item.member.key), {})
            yield Record(
                item.member.key, item.content, fields_of_sides({side: held[n].content for side, n in sides.items()})
            )


def _owners_of(held: list[_Item], some_left: bool) -> list[str | None]:
    return owners_of([item.member for item in held], other_images=some_left)
