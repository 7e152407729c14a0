"""A tree of files at any URI: local paths, s3://, and whatever else fsspec opens; writes are whole or not at all."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.core import split_protocol, url_to_fs

from cflow_ray.errors import StorageError

_S3_DEFAULTS: dict[str, Any] = {
    "use_listings_cache": False,  # another process may have written since
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 60,
        "retries": {"max_attempts": 3, "mode": "standard"},
        # Checksums in trailers are an addition of AWS that other S3 servers refuse.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
}


class Storage:
    """The files below a root URI. Paths are relative to it, separated by `/`, and never leave it.

    `options` are the file system's own, as fsspec names them (`endpoint_url`, `key`, `secret`, ...); a local root
    ignores them. Every failure is a StorageError that names the location.
    """

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        self.uri = _without_last_slash(uri)
        self.options = dict(options or {})
        protocol = split_protocol(uri)[0]
        self.is_local = protocol in (None, "file", "local")
        try:
            self._fs, self._root = url_to_fs(self.uri, **_file_system_options(protocol, self.options))
        except (ValueError, ImportError, TypeError) as error:
            raise StorageError(
                f"cannot open {uri!r}: {error}. Give a path, an s3:// URI, or one that fsspec knows."
            ) from error

    def child(self, path: str) -> Storage:
        """The tree below a folder of this one."""
        self._full(path)  # refuses what leaves this root
        return Storage(self.join(path), self.options)

    def join(self, path: str) -> str:
        """The URI of a path below this root."""
        return f"{self.uri}{'' if self.uri.endswith('/') else '/'}{path}" if path else self.uri

    def exists(self, path: str = "") -> bool:
        """Whether a file or a non-empty folder is there."""
        with self._failures(path):
            return bool(self._fs.exists(self._full(path)))

    def is_file(self, path: str = "") -> bool:
        """Whether a file is there."""
        with self._failures(path):
            return bool(self._fs.isfile(self._full(path)))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with self._failures(path):
            return int(self._fs.size(self._full(path)))

    def files(self, prefix: str = "") -> list[str]:
        """All files below a folder, at any depth, as sorted paths relative to this root; empty if there is none.

        Names that start with a dot (unfinished writes among them) are left out.
        """
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The same files with their bytes."""
        top = self._full(prefix)
        with self._failures(prefix):
            found = _local_sizes(top) if self.is_local else _remote_sizes(self._fs, top)
        start = len(self._root.rstrip("/")) + 1
        relative = {name[start:]: size for name, size in sorted(found.items())}
        return {name: size for name, size in relative.items() if not any(p.startswith(".") for p in name.split("/"))}

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below one, sorted; empty if there is none."""
        top = self._full(prefix)
        with self._failures(prefix):
            try:
                if self.is_local:
                    names = [entry.name for entry in os.scandir(top) if entry.is_dir()]
                else:
                    entries = self._fs.ls(top, detail=True)
                    folders = (entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory")
                    names = [posixpath.basename(folder) for folder in folders]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in names if name and not name.startswith("."))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes, or those from `start` up to but not including `end`."""
        with self._failures(path):
            return cast(bytes, self._fs.cat_file(self._full(path), start=start, end=end))

    def open(self, path: str) -> IO[bytes]:
        """A file to read and seek in; remote ones are fetched in ranges."""
        with self._failures(path):
            return cast(IO[bytes], self._fs.open(self._full(path), "rb"))

    def write(self, path: str, content: bytes) -> None:
        """Write a file so that a reader sees all of it or nothing; replaces what was there."""
        full = self._full(path)
        with self._failures(path):
            if not self.is_local:
                self._fs.pipe_file(full, content)
                return
            os.makedirs(os.path.dirname(full), exist_ok=True)
            unfinished = posixpath.join(posixpath.dirname(full), f".{posixpath.basename(full)}.{uuid.uuid4().hex[:8]}")
            try:
                with open(unfinished, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, full)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(unfinished)

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens where there is none."""
        with self._failures(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))

    @property
    def file_system(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system behind the root, for libraries that take one."""
        return self._fs

    @property
    def root(self) -> str:
        """The root as the file system names it, without protocol."""
        return str(self._root)

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"{path!r} leaves {self.uri}; paths are relative to it.")
        return posixpath.join(self._root, path) if path else self._root

    @contextlib.contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"{self.join(path)} does not exist. Check the path or URI.") from error
        except PermissionError as error:
            raise StorageError(f"no access to {self.join(path)}: {error}. Check permissions or credentials.") from error
        except (OSError, BotoCoreError, ClientError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(
                f"cannot reach {self.join(path)}: {reason}. Check the path, --storage-option endpoint_url and the network."
            ) from error
        except TypeError as error:  # s3fs looks at the names of its options when it first connects
            if self.is_local or not self.options:
                raise
            names = ", ".join(sorted(self.options))
            raise StorageError(
                f"cannot open {self.uri} with options {names}: {error}. Check --storage-option."
            ) from error


def split_uri(uri: str) -> tuple[str, str]:
    """A file's URI as (URI of its folder, name)."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    if folder.endswith((":/", "://")):  # the root of a file system: memory://x.tar, file:///x.tar
        return f"{folder}/", name
    return folder or ("/" if uri.startswith("/") else "."), name


def _without_last_slash(uri: str) -> str:
    """The URI of a folder in one spelling; the root of a file system (`/`, `memory://`) keeps its slashes."""
    shorter = uri.rstrip("/")
    return uri if not shorter or (shorter.endswith(":") and "://" in uri) else shorter


def _local_sizes(top: str) -> dict[str, int]:
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
            found[path] = os.path.getsize(path) if os.path.exists(path) else 0  # a link to nothing has no bytes
    return found


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one on the way to it."""
    return os.path.islink(folder) and any(os.path.samefile(folder, parent) for parent in Path(folder).parents)


def _remote_sizes(file_system: fsspec.AbstractFileSystem, top: str) -> dict[str, int]:
    inside = top.rstrip("/") + "/"
    found = file_system.find(top, detail=True)  # the file itself, without details, where `top` is one
    return {name: int(entry["size"]) for name, entry in found.items() if name.startswith(inside)}


def _file_system_options(protocol: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    if protocol in (None, "file", "local"):
        return {}
    if protocol in ("s3", "s3a"):
        return {**_S3_DEFAULTS, **options}
    return dict(options)
