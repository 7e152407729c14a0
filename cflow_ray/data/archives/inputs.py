"""From what a user names - files, folders, globs, manifests - to shards."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives.images import grouped_images
from cflow_ray.data.archives.index import Member, ShardIndex
from cflow_ray.data.archives.parquet import byte_columns, image_column
from cflow_ray.data.archives.records import problem_of_name, safe_key
from cflow_ray.data.archives.shards import Shard, archive_kind
from cflow_ray.data.images import is_image_name
from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage, split_uri

log = logging.getLogger(__name__)

_ALLOWED = (
    "a file (.tar, .tar.gz, .zip, .parquet, an image), a folder or glob of such files, or a manifest of them "
    "(.txt, .csv, .parquet)"
)
_MANIFESTS = (".txt", ".csv")
_PLACE_COLUMNS = ("uri", "path", "image", "file", "key")
"""Columns of a manifest that may hold the places, the first that is there."""

Found = Iterator[Shard | tuple[str, Member]]
"""Archives, and images with the folder that they are below."""


def find_shards(
    inputs: Iterable[str], storage_options: Mapping[str, Any], how: ReadConfig
) -> list[tuple[Shard, ShardIndex | None]]:
    """Archives of inputs in order, each once, then the images with their index, which the listing is.

    An input is a file, a folder (all archives and images below it), a glob (`*` within a folder, `**` across), or a
    manifest: one place a line, or a table with a column of places whose other columns become fields of the records.
    Images below one folder, or beside each other, are together; one that an input before named is not there again.
    Raises DataError where an input is not there or holds neither archives nor images.
    """
    archives: dict[str, Shard] = {}
    images: dict[str, list[Member]] = {}
    before: set[tuple[str, str]] = set()  # root and key of images, from the inputs before
    for uri in inputs:
        here = set()
        for one in _of_input(uri, storage_options, how):
            if isinstance(one, Shard):
                archives.setdefault(one.uri, one)
                continue
            root, member = one
            here.add((root, member.key))
            if (root, member.key) not in before:
                images.setdefault(root, []).append(member)
        before |= here
    found: list[tuple[Shard, ShardIndex | None]] = [(shard, None) for shard in archives.values()]
    for root, members in images.items():
        found += grouped_images(root, members)
    return found


def _of_input(uri: str, storage_options: Mapping[str, Any], how: ReadConfig) -> Found:
    folder, name = split_uri(uri)
    parent = Storage(folder, storage_options)
    if parent.is_file(name):
        yield from _of_file(parent, name, how)
        return
    storage = Storage(uri, storage_options)
    if storage.exists():
        files = storage.sizes()
    elif _is_glob(uri):
        top, pattern = _split_glob(uri)
        storage = Storage(top, storage_options)
        matches = re.compile(glob_translate(pattern))
        files = {path: size for path, size in storage.sizes().items() if matches.match(path)}
        if not files:
            raise DataError(f"the input {uri} matches nothing. Give {_ALLOWED}.")
    else:
        raise DataError(f"the input {uri} does not exist. Give {_ALLOWED}.")
    found = list(_of_files(storage, files, how))
    if not found:
        raise DataError(f"the input {uri} holds neither archives nor images. Give {_ALLOWED}.")
    yield from found


def _of_file(parent: Storage, name: str, how: ReadConfig) -> Found:
    kind = archive_kind(name)
    if kind == "parquet" and not _has_images(parent, name, how):
        yield from _of_manifest(parent, _rows_of_parquet(parent, name), name)
    elif kind is not None:
        yield Shard(parent.join(name), kind)
    elif is_image_name(name):
        yield parent.uri, _image(name, parent.size(name))
    elif name.lower().endswith(_MANIFESTS):
        yield from _of_manifest(parent, _rows_of_text(parent, name), name)
    else:
        raise DataError(f"the input {parent.join(name)} is no archive, image or manifest. Give {_ALLOWED}.")


def _of_files(storage: Storage, files: Mapping[str, int], how: ReadConfig) -> Found:
    """The archives and images among files below a folder."""
    for path, size in files.items():
        kind = archive_kind(path)
        if kind == "parquet" and not _has_images(storage, path, how):
            log.warning("%s has no column of image bytes; it is passed over", storage.join(path))
        elif kind is not None:
            yield Shard(storage.join(path), kind)
        elif is_image_name(path):
            yield storage.uri, _image(path, size)


def _image(path: str, size: int) -> Member:
    return Member(safe_key(path), size=size, problem=problem_of_name(path))


def _has_images(storage: Storage, path: str, how: ReadConfig) -> bool:
    try:
        with storage.open(path) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError):
        return True  # it is taken for a damaged archive, which the table then names
    if how.image_column is None and not byte_columns(schema):
        return False
    image_column(schema, storage.join(path), how)
    return True


# manifests


@dataclass(frozen=True)
class _Place:
    """A line of a manifest: where a file is, and what else the line says."""

    storage: Storage
    path: str
    fields: Mapping[str, Any]


def _of_manifest(parent: Storage, rows: Iterable[Mapping[str, Any]], name: str) -> Found:
    """What a manifest names, in its order; a place is looked up only when it is read."""
    count = 0
    for row in rows:
        place = _place(parent, row, name)
        count += 1
        kind = archive_kind(place.path)
        if kind is not None:
            yield Shard(place.storage.join(place.path), kind)
        elif is_image_name(place.path):
            yield place.storage.uri, Member(place.path, fields=place.fields)
        else:
            raise DataError(f"{parent.join(name)} names {place.path!r}, which is no archive and no image.")
    if not count:
        raise DataError(f"the manifest {parent.join(name)} names nothing. Write one path or URI a line.")


def _place(parent: Storage, row: Mapping[str, Any], name: str) -> _Place:
    column = next((column for column in _PLACE_COLUMNS if row.get(column)), None)
    if column is None:
        raise DataError(
            f"{parent.join(name)} has a line without a place; one of the columns {', '.join(_PLACE_COLUMNS)} must name it."
        )
    text = str(row[column])
    fields = {key: value for key, value in row.items() if key != column and value is not None}
    root, path = _root_and_path(parent, text)
    return _Place(root, path, fields)


def _root_and_path(parent: Storage, text: str) -> tuple[Storage, str]:
    """A place relative to the manifest's folder; an absolute one relative to its bucket or the root of the disk."""
    protocol, separator, rest = text.partition("://")
    if separator:
        bucket, _, path = rest.partition("/")
        return Storage(f"{protocol}://{bucket}", parent.options), path
    if text.startswith("/"):
        return Storage("/", {}), text.lstrip("/")
    return parent, text.removeprefix("./")


def _rows_of_text(storage: Storage, name: str) -> list[dict[str, Any]]:
    """Lines of a manifest: of a CSV under their header, else each the place itself; # begins a comment."""
    try:
        text = storage.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{storage.join(name)} is no UTF-8 text: {error}") from error
    if name.lower().endswith(".csv"):
        return [dict(row) for row in csv.DictReader(io.StringIO(text))]
    lines = (line.strip() for line in text.splitlines())
    return [{"uri": line} for line in lines if line and not line.startswith("#")]


def _rows_of_parquet(storage: Storage, name: str) -> list[dict[str, Any]]:
    with storage.open(name) as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows


# globs


def _is_glob(uri: str) -> bool:
    return any(character in uri for character in "*?[")


def _split_glob(uri: str) -> tuple[str, str]:
    """The folder above the first part with a wildcard, and the pattern below it."""
    parts: Sequence[str] = uri.split("/")
    first = next(number for number, part in enumerate(parts) if _is_glob(part))
    return "/".join(parts[:first]) or ("/" if uri.startswith("/") else "."), "/".join(parts[first:])
