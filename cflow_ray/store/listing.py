"""The files below a folder of a local disk or an object store, with their bytes: at once, or a page at a time."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

import fsspec


def local_sizes(top: str) -> dict[str, int]:
    """Bytes by path of the files below a folder. Unlike fsspec's listing it follows links to folders, and fails where
    a folder may not be read."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    found: dict[str, int] = {}
    for folder, below, names in os.walk(top, onerror=fail, followlinks=True):
        below[:] = [name for name in below if not _leads_back(posixpath.join(folder, name))]
        for name in names:
            path = posixpath.join(folder, name)
            found[path] = _size(path)
    return found


def local_pages(start: str) -> Iterator[dict[str, int]]:
    """The same of the files whose full path begins with `start`, a folder of the first level at a time."""
    folder, _, beginning = start.rpartition("/")
    try:
        names = [name for name in os.listdir(folder or "/") if name.startswith(beginning)]
    except (FileNotFoundError, NotADirectoryError):
        return
    paths = [f"{folder}/{name}" for name in names]
    folders = {path for path in paths if os.path.isdir(path)}
    yield {path: _size(path) for path in paths if path not in folders}
    for path in folders:
        if not _leads_back(path):
            yield local_sizes(path)


def remote_sizes(file_system: fsspec.AbstractFileSystem, top: str, is_s3: bool) -> dict[str, int]:
    """Bytes by path of the files below a folder of a remote store."""
    inside = top.rstrip("/") + "/"
    if is_s3 and "/" in top:
        folder, _, name = top.rpartition("/")
        found = file_system.find(folder, prefix=f"{name}/", detail=True)
    else:
        found = file_system.find(top, detail=True)  # the file itself, without details, where `top` is one
    return {name: int(entry["size"]) for name, entry in found.items() if name.startswith(inside)}


def s3_page(file_system: fsspec.AbstractFileSystem, start: str, token: str) -> tuple[dict[str, int], str | None]:
    """One page of the objects of S3 whose name begins with `start`, and the token of the next one; None after the last.

    s3fs's own listing keeps a dict of some 1.2 kB an object until all are listed.
    """
    bucket, prefix, _ = file_system.split_path(start)
    after = {"ContinuationToken": token} if token else {}
    page = file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **after)
    found = {f"{bucket}/{entry['Key']}": int(entry["Size"]) for entry in page.get("Contents", ())}
    return found, page["NextContinuationToken"] if page.get("IsTruncated") else None


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:  # a link to nothing has no bytes, nor has a file that was removed meanwhile
        return 0


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one on the way to it."""
    return os.path.islink(folder) and any(os.path.samefile(folder, parent) for parent in Path(folder).parents)


# On S3, whether something is there is asked by listing: after a HEAD that finds nothing Swift leaves bytes on the
# connection that spoil the next answer.


def has_entries(file_system: fsspec.AbstractFileSystem, full: str) -> bool:
    """Whether there is anything below a path."""
    try:
        return bool(file_system.ls(full))
    except FileNotFoundError:
        return False


def is_listed(file_system: fsspec.AbstractFileSystem, full: str) -> bool:
    """Whether there is a file at a path."""
    folder, _, name = full.rpartition("/")
    return bool(folder) and full in file_system.find(folder, prefix=name, maxdepth=1)
