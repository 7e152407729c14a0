"""A tree of files at any URI: local paths, s3://, and whatever else fsspec opens; writes are whole or not at all."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator, Mapping
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
        self.uri = uri.rstrip("/") or "/"
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
        return Storage(self.join(path), self.options)

    def join(self, path: str) -> str:
        """The URI of a path below this root."""
        return f"{self.uri.rstrip('/')}/{path}" if path else self.uri

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
        with self._failures(prefix):
            found = self._fs.find(self._full(prefix), detail=True)
        start = len(self._root.rstrip("/")) + 1
        relative = {name[start:]: int(entry["size"]) for name, entry in sorted(found.items())}
        return {name: size for name, size in relative.items() if not any(p.startswith(".") for p in name.split("/"))}

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below one, sorted; empty if there is none."""
        with self._failures(prefix):
            try:
                entries = self._fs.ls(self._full(prefix), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = (posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory")
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


def split_uri(uri: str) -> tuple[str, str]:
    """A file's URI as (URI of its folder, name)."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), name


def _file_system_options(protocol: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    if protocol in (None, "file", "local"):
        return {}
    if protocol in ("s3", "s3a"):
        return {**_S3_DEFAULTS, **options}
    return dict(options)
