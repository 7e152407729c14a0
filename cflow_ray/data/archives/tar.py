"""Tar files: their records from the headers or an index beside them, read in ranges."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.extents import fetch_members
from cflow_ray.data.archives.index import INDEX_SUFFIX, Extent, Member, ShardIndex
from cflow_ray.data.archives.records import Record, problem_of_name, safe_key, too_large
from cflow_ray.data.archives.side_cars import fields_of_sides, name_of, owners_of, sides_of_names
from cflow_ray.data.archives.tar_headers import DAMAGE, headers, open_tar
from cflow_ray.errors import RecordError, StorageError
from cflow_ray.store.storage import Storage

_BLOCK = tarfile.BLOCKSIZE


def read_tar_index(storage: Storage, name: str) -> ShardIndex:
    """The records of a tar: from the index beside it where that belongs to it, or else from its headers."""
    written = storage.read_if_there(name + INDEX_SUFFIX)
    index = None if written is None else ShardIndex.from_json(written, storage.size(name))
    if index is not None:
        return index
    with storage.open(name) as file:
        return index_from_headers(file, storage.join(name))


def read_tar_records(storage: Storage, name: str, members: Sequence[Member], how: ReadConfig) -> Iterator[Record]:
    """Successive records of a tar, fetched with their side-cars in few ranged reads."""

    def extents_of(member: Member) -> Iterator[Extent]:
        yield member.extent
        yield from (extent for extent in member.sides.values() if not too_large(extent.size, how))

    def error_of(member: Member) -> RecordError | None:
        return member.error or too_large(member.size, how)

    for member, content, found in fetch_members(storage, name, members, error_of, extents_of):
        sides = {side: found[extent] for side, extent in member.sides.items() if extent in found}
        yield Record(member.key, content, fields_of_sides(sides))


def member_of_header(info: tarfile.TarInfo) -> Member | None:
    """The record that a header announces; None where it is none, as a folder is."""
    if info.isdir():
        return None
    name = info.name.removeprefix("./")  # `tar -C root -c .` writes it before every name
    problem = problem_of_name(name)
    if not info.isfile() or info.issparse():
        problem = f"not_a_file: {_kind_of(info)}; only files inside the archive are read"
    return Member(safe_key(name), info.offset_data, info.size if info.isfile() else 0, problem)


def with_sides(members: Sequence[Member]) -> list[Member]:
    """The members that are records, each with its side-cars; a side-car without its image is a record."""
    owners = owners_of(members)
    places = sides_of_names(members, owners)
    sides = {name: {side: members[n].extent for side, n in kinds.items()} for name, kinds in places.items()}
    records = (member for member, owner in zip(members, owners, strict=True) if owner is None)
    return [replace(member, sides=sides.get(name_of(member.key), {})) for member in records]


def index_from_headers(file: Any, uri: str) -> ShardIndex:
    """The records of a tar by its headers, each some 512 bytes, up to its end or damage."""
    members: list[Member] = []
    try:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        with open_tar(file) as tar:
            for info in headers(tar):
                if tar.offset <= info.offset:
                    raise tarfile.ReadError(f"nonsensical size of {safe_key(info.name)}")
                if member := member_of_header(info):
                    members.append(member)
                if tar.offset > end:
                    raise tarfile.ReadError("unexpected end of data")
            damage = damage_at(file, tar.offset)
    except OSError as error:
        raise StorageError(f"cannot read the headers of {uri}: {error}. Try again.") from error
    except DAMAGE as error:
        damage = damaged(error)
    return ShardIndex.of(with_sides(members), damage)


def damaged(error: BaseException) -> str:
    """What a table says of the records that damage hides."""
    return f"damaged tar: {' '.join(safe_key(str(error)).split()) or type(error).__name__}"


def _kind_of(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {safe_key(info.linkname)!r}"
    if info.isdev():
        return "a device or pipe"
    return "no regular file"


def damage_at(file: Any, end: int) -> str | None:
    """What is wrong with a tar where its last header was read: tarfile takes any block that is no header for the end."""
    file.seek(end)
    block = file.read(_BLOCK)
    if not any(block) and len(block) == _BLOCK:
        return None
    return f"damaged tar: at byte {end} is " + ("no header" if len(block) == _BLOCK else "an end without its mark")
