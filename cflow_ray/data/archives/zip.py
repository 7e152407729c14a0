"""Zip files: their records from the central directory, read in ranges."""

from __future__ import annotations

import bz2
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.extents import fetch_members
from cflow_ray.data.archives.index import Member, ShardIndex
from cflow_ray.data.archives.records import Record, problem_of_name, safe_key, too_large
from cflow_ray.errors import CflowRayError, RecordError, StorageError
from cflow_ray.store.storage import Storage

_ENCRYPTED = 0x1
_LINK, _FOLDER, _FILE = 0o12, 0o4, 0o10  # the kind of a file in the upper bits of a Unix mode
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature; lengths of name and extra field
_LONGEST_HEADER = _LOCAL_HEADER.size + 2 * 0xFFFF
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def read_zip_index(storage: Storage, name: str) -> ShardIndex:
    """The records of a zip; damage where its central directory cannot be read, since that alone says what it holds."""
    try:
        with storage.open(name) as file, zipfile.ZipFile(file) as archive:
            # Not `is_dir`, which fails on an empty name.
            files = [info for info in archive.infolist() if not info.filename.endswith("/")]
            infos = sorted(files, key=lambda info: info.header_offset)
            end = archive.start_dir
    except OSError as error:
        raise StorageError(f"cannot read the directory of {storage.join(name)}: {error}. Try again.") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        return ShardIndex((), f"damaged zip: {' '.join(safe_key(str(error)).split())}")
    starts = [*(info.header_offset for info in infos), end]
    return ShardIndex.of([_member(info, until) for info, (_, until) in zip(infos, pairwise(starts), strict=True)])


def read_zip_records(storage: Storage, name: str, members: Sequence[Member], how: ReadConfig) -> Iterator[Record]:
    """Successive records of a zip, fetched in few ranged reads and unpacked within the limit."""

    def error_of(member: Member) -> RecordError | None:
        assert member.packed is not None
        return member.error or too_large(max(member.packed[1], member.packed[3]), how)

    for member, content, _ in fetch_members(storage, name, members, error_of):
        yield Record(member.key, _unpacked(content, member) if isinstance(content, bytes) else content)


def _member(info: zipfile.ZipInfo, until: int) -> Member:
    """A record whose extent goes from its local header to the next or, where a gap follows, to its own end at most."""
    problem = problem_of_name(info.filename) or _problem(info)
    packed = (info.compress_type, info.file_size, info.CRC, info.compress_size)
    size = min(max(0, until - info.header_offset), info.compress_size + _LONGEST_HEADER)
    return Member(safe_key(info.filename), info.header_offset, size, problem, packed=packed)


def _problem(info: zipfile.ZipInfo) -> str | None:
    kind = info.external_attr >> 28
    if info.create_system == 3 and kind not in (0, _FILE, _FOLDER):
        what = "a link" if kind == _LINK else "a device or pipe"
        return f"not_a_file: {what}; only files inside the archive are read"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted: the member is encrypted; pack it again without a password"
    if info.compress_type not in _METHODS:
        return f"unknown_compression: method {info.compress_type}; pack it again as stored or deflate"
    return None


def _unpacked(span: bytes, member: Member) -> bytes | CflowRayError:
    """A member's bytes out of its span, never more than the directory says and the limit allows."""
    assert member.packed is not None
    method, size, crc, packed_size = member.packed
    try:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(span)
        if signature != b"PK\3\4":
            raise ValueError("no header where the directory says")
        start = _LOCAL_HEADER.size + name_length + extra_length
        content = _decompress(method, span[start : start + packed_size], size)
    except (struct.error, ValueError, zlib.error, OSError, EOFError) as error:
        return RecordError(f"damaged member: {' '.join(str(error).split())}", "damaged_member")
    if len(content) != size or zlib.crc32(content) != crc:
        return RecordError("damaged member: its bytes do not have the checksum of the directory", "damaged_member")
    return content


def _decompress(method: int, packed: bytes, size: int) -> bytes:
    """At most one byte more than `size`, which tells a member that holds more without the memory that it would take."""
    if method == zipfile.ZIP_STORED:
        return packed
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS) if method == zipfile.ZIP_DEFLATED else bz2.BZ2Decompressor()
    return decompressor.decompress(packed, size + 1)
