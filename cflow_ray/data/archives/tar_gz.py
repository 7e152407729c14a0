"""Compressed tar files, which have no middle to begin at: one reader streams them from the start."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.index import Member
from cflow_ray.data.archives.records import Record, too_large
from cflow_ray.data.archives.tar import (
    damage_at,
    damaged,
    fields_of_sides,
    headers,
    member_of_header,
    side_of,
    stem_of,
)
from cflow_ray.data.images import is_image_name
from cflow_ray.errors import CflowRayError, RecordError, StorageError
from cflow_ray.store.storage import Storage

_BUFFER = 2**20
_LONGEST_RUN = 16  # members of one stem that are kept for their side-cars


def stream_tar_gz(storage: Storage, name: str, how: ReadConfig) -> Iterator[Record]:
    """All records of a compressed tar in order; the last one says so where it is damaged.

    Side-cars must stand beside their image, as WebDataset writes them. Unpacked bytes of members above the limit are
    passed over without being kept.
    """
    seen: set[str] = set()
    for record in _with_sides(_members(storage, name, how)):
        if record.key in seen and record.key:
            yield Record(record.key, RecordError("a record before has the same key", "duplicate_key"), record.fields)
        else:
            seen.add(record.key)
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
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                for info in headers(tar):
                    if member := member_of_header(info):
                        yield _Item(member, _content(tar, info, member, how))
                damage = damage_at(unpacked, tar.offset)
        if damage:
            yield _Item(Member(""), RecordError(damage, "damaged_archive"))
    except StorageError as error:
        yield _Item(Member(""), error)
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError, OverflowError) as error:
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
    """Runs of members with one stem: the images among them are records with the side-cars' fields."""
    run: list[_Item] = []
    for item in items:
        if run and (len(run) == _LONGEST_RUN or stem_of(item.member.key) != stem_of(run[0].member.key)):
            yield from _records_of(run)
            run = []
        run.append(item)
    yield from _records_of(run)


def _records_of(run: list[_Item]) -> Iterator[Record]:
    has_image = any(is_image_name(item.member.key) for item in run)
    sides = {
        side: item.content
        for item in run
        if has_image and item.member.problem is None and (side := side_of(item.member.key)) is not None
    }
    fields = fields_of_sides(sides)
    for item in run:
        if not has_image or item.member.problem is not None or side_of(item.member.key) is None:
            yield Record(item.member.key, item.content, fields)
