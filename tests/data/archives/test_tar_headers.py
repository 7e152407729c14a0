"""Headers that announce more than any reader should hold are damage, found in little memory."""

from __future__ import annotations

import tarfile
import tracemalloc
from typing import Literal

import pytest

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Record
from cflow_ray.data.archives.tar_headers import LONGEST_HEADERS
from cflow_ray.store.storage import Storage
from tests.data.archives.conftest import ReadTar
from tests.tars import tar_of

BEFORE = [("c/0.png", b"0"), ("c/1.png", b"1")]
BEHIND = tar_of([("c/2.png", b"2")])
HUGE = 40 * 2**20


def header(kind: bytes, size: int) -> bytes:
    """A header alone, whatever its size says."""
    info = tarfile.TarInfo("c/long")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size if size >= 0 else (256**12 + size).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def pax_record(keyword: bytes, value: bytes) -> bytes:
    """`length keyword=value`, its own length included (POSIX.1-2008, pax interchange format)."""
    length = len(keyword) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, keyword, value)


def pax(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header."""
    content = b"".join(records)
    return header(kind, len(content)) + padded(content)


def many_global_headers() -> bytes:
    """Each before a member of its own, and none large."""
    attributes = (pax_record(b"comment%d" % number, b"n" * 2**19) for number in range(80))
    return b"".join(pax(one, kind=tarfile.XGLTYPE) + tar_of([("0.bin", b"")])[:512] for one in attributes)


NAME = b"n" * HUGE
BOMBS = {
    "long name": header(tarfile.GNUTYPE_LONGNAME, HUGE) + NAME,
    "long link": header(tarfile.GNUTYPE_LONGLINK, HUGE) + NAME,
    "long name to the end": header(tarfile.GNUTYPE_LONGNAME, -512) + NAME,
    "pax header": pax(pax_record(b"path", NAME)),
    "global pax header": pax(pax_record(b"comment", NAME), kind=tarfile.XGLTYPE),
    "many long names of one member": (header(tarfile.GNUTYPE_LONGNAME, 2**19) + NAME[: 2**19]) * 80,
    "long names without end": header(tarfile.GNUTYPE_LONGNAME, 0) * 2000,
    "many global pax headers": many_global_headers(),
    "sparse map": pax(pax_record(b"GNU.sparse.major", b"1"), pax_record(b"GNU.sparse.minor", b"0"))
    + header(tarfile.REGTYPE, HUGE)
    + padded(b"%d\n" % HUGE + (b"1" * 20 + b"\n") * (HUGE // 21)),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("first", [True, False])
def test_headers_that_never_end_are_damage_in_little_memory(
    read_tar: ReadTar, storage: Storage, bomb: str, first: bool
) -> None:
    before = [] if first else BEFORE
    content = tar_of(before)[: 1024 * len(before)] + padded(BOMBS[bomb]) + BEHIND
    records, peak = measured(read_tar, content)
    whole = [record for record in records if isinstance(record.content, bytes)]
    assert [(record.key, record.content) for record in whole][: len(before)] == before
    assert [getattr(record.content, "kind", None) for record in records[len(whole) :]] == ["damaged_archive"]
    assert len(str(records[-1].content)) < 200
    assert peak < 16 * 2**20 or not storage.is_local  # a storage in memory holds the archive


def measured(read_tar: ReadTar, content: bytes) -> tuple[list[Record], int]:
    """The records, and the most bytes that were held meanwhile."""
    tracemalloc.start()
    try:
        records = read_tar(content)
        return records, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_attributes_within_the_limit_are_read(read_tar: ReadTar, form: Literal[1, 2]) -> None:
    info = tarfile.TarInfo("folder/" * 500 + "0.png")
    info.size = 5
    info.pax_headers = {"SCHILY.xattr.user.note": "n" * (LONGEST_HEADERS // 2)}
    content = info.tobuf(form) + padded(b"bytes") + BEHIND
    found = [(record.key, record.content) for record in read_tar(content)]
    assert found == [(info.name, b"bytes"), ("c/2.png", b"2")]


def test_the_limit_is_one_of_headers_and_not_of_content(read_tar: ReadTar) -> None:
    large = bytes(3 * LONGEST_HEADERS)
    assert len(large) < ReadConfig().max_image_size
    contents = [(f"{number}.png", large) for number in range(3)]
    assert [(record.key, record.content) for record in read_tar(tar_of(contents))] == contents
