"""Archives of images: tar shards with an index, or plain folders, as records that can be read in ranges; packing."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cflow_ray.data.images import is_image_name
from cflow_ray.errors import DataError, StorageError
from cflow_ray.store.storage import Storage, split_uri

INDEX_SUFFIX = ".index.json"
_INDEX_VERSION = 1
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One record: its key, and where its bytes lie in the shard (for a folder: 0 and unknown, -1)."""

    key: str
    offset: int = 0
    size: int = -1


@dataclass(frozen=True)
class Shard:
    """An archive that is one source of records: a tar file, or a folder of image files."""

    uri: str
    kind: str
    """`tar` or `folder`."""

    @property
    def id(self) -> str:
        """A name for folders and image ids: the file's own, made unique by a digest of its URI."""
        stem = posixpath.basename(self.uri.rstrip("/")).removesuffix(".tar") or "root"
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem)
        return f"{plain}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class ShardIndex:
    """The records of a shard in order; `damage` says why there are no more, if the shard is not whole."""

    members: tuple[Member, ...]
    damage: str | None = None

    def to_json(self, size: int = -1) -> bytes:
        """The index as a file; `size` is that of the tar it belongs to."""
        members = [[member.key, member.offset, member.size] for member in self.members]
        content = {"format_version": _INDEX_VERSION, "size": size, "damage": self.damage, "members": members}
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, content: bytes, size: int | None = None) -> ShardIndex | None:
        """What `to_json` wrote; None where it is of another version or of a tar of another size."""
        try:
            values = json.loads(content)
            if values["format_version"] != _INDEX_VERSION or size not in (None, values["size"]):
                return None
            return cls(tuple(Member(*member) for member in values["members"]), values["damage"])
        except (ValueError, KeyError, TypeError):
            return None


def find_shards(inputs: Iterable[str], storage_options: Mapping[str, Any]) -> list[Shard]:
    """Shards of inputs: a .tar file, or a folder, which stands for its .tar files or, without any, its images.

    Raises DataError where an input is not there or holds neither.
    """
    shards: dict[str, Shard] = {}
    for uri in inputs:
        for shard in _shards_of(uri, storage_options):
            shards[shard.uri] = shard
    return list(shards.values())


def read_index(shard: Shard, storage_options: Mapping[str, Any]) -> ShardIndex:
    """The records of a shard: from the index beside a tar, from the tar's headers, or from a folder's listing."""
    if shard.kind == "folder":
        storage = Storage(shard.uri, storage_options)
        return ShardIndex(tuple(Member(path) for path in storage.files() if is_image_name(path)))
    folder, name = split_uri(shard.uri)
    storage = Storage(folder, storage_options)
    written = storage.read_if_there(name + INDEX_SUFFIX)
    if written is not None:
        index = ShardIndex.from_json(written, storage.size(name))
        if index is not None:
            return index
    with storage.open(name) as file:
        return _index_from_headers(file, shard.uri)


def read_records(
    shard: Shard, members: Sequence[Member], storage_options: Mapping[str, Any]
) -> Iterator[tuple[str, bytes | StorageError]]:
    """Key and bytes of successive records; a record that cannot be read gives its error instead of bytes.

    The records of a tar lie side by side and are fetched in one ranged read.
    """
    if shard.kind == "folder":
        storage = Storage(shard.uri, storage_options)
        for member in members:
            try:
                yield member.key, storage.read(member.key)
            except StorageError as error:
                yield member.key, error
        return
    folder, name = split_uri(shard.uri)
    first, end = members[0].offset, max(member.offset + member.size for member in members)
    try:
        span = Storage(folder, storage_options).read(name, first, end)
    except StorageError as error:
        yield from ((member.key, error) for member in members)
        return
    for member in members:
        start = member.offset - first
        content = span[start : start + member.size]
        short = len(content) < member.size
        yield member.key, StorageError(f"{shard.uri} ends inside {member.key}") if short else content


def write_shards(records: Iterable[tuple[str, bytes]], output: Storage, name: str, shard_bytes: int) -> list[str]:
    """Pack records into `<name>-<number>.tar` of about `shard_bytes` each, with an index beside each; returns their names.

    The same records give the same bytes: no times, owners or modes of the files are kept.
    """
    written: list[str] = []
    buffer, members = io.BytesIO(), list[Member]()

    def finish() -> None:
        nonlocal buffer, members
        buffer.write(bytes(2 * _BLOCK))  # the two empty blocks that end a tar
        shard = f"{name}-{len(written):06d}.tar"
        output.write(shard, buffer.getvalue())
        output.write(shard + INDEX_SUFFIX, ShardIndex(tuple(members)).to_json(buffer.tell()))
        written.append(shard)
        buffer, members = io.BytesIO(), []

    for key, content in records:
        if members and buffer.tell() + len(content) > shard_bytes:
            finish()
        buffer.write(_header(key, len(content)))
        members.append(Member(key, buffer.tell(), len(content)))
        buffer.write(content + bytes(-len(content) % _BLOCK))
    if members:
        finish()
    return written


def _header(key: str, size: int) -> bytes:
    info = tarfile.TarInfo(key)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _shards_of(uri: str, storage_options: Mapping[str, Any]) -> list[Shard]:
    folder, name = split_uri(uri)
    if name.lower().endswith(".tar") and Storage(folder, storage_options).is_file(name):
        return [Shard(uri, "tar")]
    storage = Storage(uri, storage_options)
    if not storage.exists():
        raise DataError(f"the input {uri} does not exist. Give a .tar file or a folder of .tar files or images.")
    files = storage.files()
    tars = [path for path in files if path.lower().endswith(".tar")]
    if tars:
        return [Shard(storage.join(path), "tar") for path in tars]
    if any(is_image_name(path) for path in files):
        return [Shard(storage.uri, "folder")]
    raise DataError(f"the input {uri} holds neither .tar files nor images.")


def _index_from_headers(file: Any, uri: str) -> ShardIndex:
    members: list[Member] = []
    try:
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if tar.offset <= info.offset:
                    raise tarfile.ReadError(f"nonsensical size of {info.name}")
                if info.isfile():  # `tar -C root -c .` writes ./ before every name
                    members.append(Member(info.name.removeprefix("./"), info.offset_data, info.size))
                if tar.offset > end:
                    raise tarfile.ReadError("unexpected end of data")
            damage = _damage_at(file, tar.offset)
    except OSError as error:
        raise StorageError(f"cannot read the headers of {uri}: {error}. Try again.") from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        damage = f"damaged tar: {' '.join(str(error).split())}"
    return ShardIndex(tuple(members), damage)


def _damage_at(file: Any, end: int) -> str | None:
    """What is wrong with a tar where its last header was read: tarfile takes any block that is no header for the end."""
    file.seek(end)
    block = file.read(_BLOCK)
    if not any(block) and len(block) == _BLOCK:
        return None
    return f"damaged tar: at byte {end} is " + ("no header" if len(block) == _BLOCK else "an end without its mark")
