"""Writing tar shards: how long a record will be in one, from its size alone, and the bytes themselves."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from cflow_ray.data.archives.index import INDEX_SUFFIX, Member, ShardIndex
from cflow_ray.store.storage import Storage

_BLOCK = tarfile.BLOCKSIZE
END_BYTES = 2 * _BLOCK
"""The two empty blocks that end a tar."""


def shard_name(name: str, number: int) -> str:
    """File name of a shard."""
    return f"{name}-{number:06d}.tar"


def record_bytes(key: str, size: int) -> int:
    """What a record of so many bytes adds to a tar: header, content, padding."""
    return len(_header(key, size)) + size + -size % _BLOCK


class TarBuffer:
    """A tar in memory with the index of its members.

    The same records give the same bytes: no times, owners or modes of the files are kept.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._members: list[Member] = []

    def __len__(self) -> int:
        """Bytes so far."""
        return self._buffer.tell()

    def add(self, key: str, content: bytes) -> None:
        """One more record."""
        self._buffer.write(_header(key, len(content)))
        self._members.append(Member(key, len(self), len(content)))
        self._buffer.write(content)
        self._buffer.write(bytes(-len(content) % _BLOCK))

    def write(self, output: Storage, shard: str) -> None:
        """End the tar and write it, then the index beside it: where that is, the tar is whole."""
        self._buffer.write(bytes(END_BYTES))
        output.write(shard, self._buffer.getvalue())
        output.write(shard + INDEX_SUFFIX, ShardIndex.of(self._members).to_json(len(self)))


def write_shards(records: Iterable[tuple[str, bytes]], output: Storage, name: str, shard_bytes: int) -> list[str]:
    """Pack records, one after the other, into `<name>-<number>.tar` of about `shard_bytes` each; returns their names."""
    written: list[str] = []
    tar = TarBuffer()
    for key, content in records:
        if len(tar) and len(tar) + len(content) > shard_bytes:
            written.append(shard_name(name, len(written)))
            tar.write(output, written[-1])
            tar = TarBuffer()
        tar.add(key, content)
    if len(tar):
        written.append(shard_name(name, len(written)))
        tar.write(output, written[-1])
    return written


def _header(key: str, size: int) -> bytes:
    info = tarfile.TarInfo(key)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)
