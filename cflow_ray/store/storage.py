"""A tree of files at any URI: local paths, s3://, and whatever else fsspec opens; writes are whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import aiohttp
import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.core import split_protocol, url_to_fs

from cflow_ray.errors import MissingFileError, StorageError
from cflow_ray.store.listing import has_entries, is_listed, local_pages, local_sizes, remote_sizes, s3_page
from cflow_ray.store.patience import Patience, describe, leave_tries_to_botocore
from cflow_ray.store.ranged import RangedFile

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_S3 = ("s3", "s3a")
_S3_DEFAULTS: dict[str, Any] = {
    "use_listings_cache": False,  # another process may have written since
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 20,  # seconds without a byte; well below Patience, so that a request that hangs is sent again
        # Quick tries of one request, so that a page of a long listing does not cost the pages before it; whole
        # operations are tried again with Patience.
        "retries": {"total_max_attempts": 3, "mode": "standard"},
        # Checksums in trailers are an addition of AWS that other S3 servers refuse.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
}

_S3_PATIENT_REQUESTS = {"total_max_attempts": 10, "mode": "standard"}  # waits of some 55 s together
_READ_AHEAD = 8 * 2**20

Result = TypeVar("Result")


class Storage:
    """The files below a root URI. Paths are relative to it, separated by `/`, and never leave it.

    `options` are the file system's own, as fsspec names them (`endpoint_url`, `key`, `secret`, ...); a local root
    ignores them. A remote store that is in trouble for a while is waited for as long as `patience` lasts. Every failure
    is a StorageError that names the location.
    """

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None, patience: Patience | None = None) -> None:
        self.uri = _without_last_slash(uri)
        self.options = dict(options or {})
        self._patience = patience or Patience()
        protocol = split_protocol(uri)[0]
        self.is_local = protocol in (None, "file", "local")
        self._is_s3 = protocol in _S3
        try:
            self._fs, self._root = url_to_fs(self.uri, **_file_system_options(protocol, self.options))
        except (ValueError, ImportError, TypeError) as error:
            raise StorageError(
                f"cannot open {uri!r}: {error}. Give a path, an s3:// URI, or one that fsspec knows."
            ) from error
        if self._is_s3:
            leave_tries_to_botocore(self._fs)

    def child(self, path: str) -> Storage:
        """The tree below a folder of this one."""
        self._full(path)  # refuses what leaves this root
        return Storage(self.join(path), self.options, self._patience)

    def join(self, path: str) -> str:
        """The URI of a path below this root."""
        return f"{self.uri}{'' if self.uri.endswith('/') else '/'}{path}" if path else self.uri

    def exists(self, path: str = "") -> bool:
        """Whether a file or a non-empty folder is there."""
        return bool(
            self._call(path, lambda full: has_entries(self._fs, full) if self._is_s3 else self._fs.exists(full))
        )

    def is_file(self, path: str = "") -> bool:
        """Whether a file is there."""
        return bool(self._call(path, lambda full: is_listed(self._fs, full) if self._is_s3 else self._fs.isfile(full)))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return int(self._call(path, self._fs.size))

    def files(self, prefix: str = "") -> list[str]:
        """All files below a folder, at any depth, as sorted paths relative to this root; empty if there is none.

        Names that start with a dot (unfinished writes among them) are left out.
        """
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The same files with their bytes."""
        found = self._call(
            prefix, lambda full: local_sizes(full) if self.is_local else remote_sizes(self._fs, full, self._is_s3)
        )
        return dict(self._visible(dict(sorted(found.items()))))

    def walk(self, start: str = "") -> Iterator[tuple[str, int]]:
        """The files whose path begins with `start`, with their bytes, one after the other and in no order.

        No more than a page of S3's listing is held, or the files of one local folder; other stores list all at once.
        """
        for page in self._pages(start):
            yield from ((path, size) for path, size in self._visible(page) if path.startswith(start))

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below one, sorted; empty if there is none."""
        names = self._call(
            prefix, lambda full: _local_folders(full) if self.is_local else _remote_folders(self._fs, full)
        )
        return sorted(name for name in names if name and not name.startswith("."))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes, or those from `start` up to but not including `end`; fewer where it ends before."""
        if start is not None and end is not None and end <= start:
            return b""  # S3 takes such a range for none and sends the whole file
        return cast(bytes, self._call(path, lambda full: self._cat(full, start=start, end=end)))

    def read_if_there(self, path: str) -> bytes | None:
        """A file's bytes; None where there is none. One request where `is_file` and `read` are two."""

        def read(full: str) -> bytes | None:
            try:
                return cast(bytes, self._cat(full))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

        return self._call(path, read)

    def open(self, path: str) -> IO[bytes]:
        """A file to read and seek in; remote ones are fetched in ranges, each as `read` does."""
        if self.is_local:
            return cast(IO[bytes], self._call(path, lambda full: self._fs.open(full, "rb")))
        ranges = RangedFile(lambda start, end: self.read(path, start, end), self.size(path))
        return io.BufferedReader(ranges, _READ_AHEAD)

    def write(self, path: str, content: bytes) -> None:
        """Write a file so that a reader sees all of it or nothing; replaces what was there."""
        self._call(
            path, lambda full: _write_local(full, content) if self.is_local else self._fs.pipe_file(full, content)
        )

    def write_new(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; whether it was written.

        Of two that write at once one is told False, where the store knows conditional writes (Swift does not); else the
        later wins.
        """
        if self.is_local:
            return self._call(path, lambda full: _link_local(full, content))

        def create(full: str) -> bool:
            try:
                self._fs.pipe_file(full, content, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
            if is_listed(self._fs, full):
                return False
            self._fs.pipe_file(full, content)
            return True

        return self._call(path, create)

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens where there is none."""

        def remove(full: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(full)

        self._call(path, remove)

    @property
    def arrow_file_system(self) -> FileSystem:
        """The file system as pyarrow's, for libraries that take one.

        It too asks S3 by listing, and waits for an S3 that is in trouble, if by each request for itself.
        """
        from cflow_ray.store.arrow import of_fsspec, of_s3  # noqa: PLC0415  # 27 MB that few processes need

        if not self._is_s3:
            return of_fsspec(self._fs)
        options = _file_system_options("s3", self.options)
        patient = options["config_kwargs"] | {"retries": _S3_PATIENT_REQUESTS}
        return of_s3(fsspec.filesystem("s3", **options | {"config_kwargs": patient}))

    @property
    def root(self) -> str:
        """The root as the file system names it, without protocol."""
        return str(self._root)

    def _pages(self, start: str) -> Iterator[Mapping[str, int]]:
        """Pages of a listing that holds at least the files whose path begins with `start`, under their full names."""
        self._full(start)  # refuses what leaves this root
        if self.is_local:
            pages = local_pages(posixpath.join(self._root, start))
            while (page := self._call(start, lambda _: next(pages, None))) is not None:
                yield page
        elif self._is_s3:
            token: str | None = ""
            while token is not None:
                page, token = self._s3_page(start, token)
                yield page
        else:
            yield self._call(start.rpartition("/")[0], lambda full: remote_sizes(self._fs, full, is_s3=False))

    def _s3_page(self, start: str, token: str) -> tuple[dict[str, int], str | None]:
        full = posixpath.join(self._root, start)  # ends with a slash where `start` is empty
        return self._call(start, lambda _: s3_page(self._fs, full, token))

    def _visible(self, found: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """Paths below this root for full names, without those of which a part starts with a dot."""
        start = len(self._root.rstrip("/")) + 1
        relative = ((name[start:], size) for name, size in found.items())
        return ((path, size) for path, size in relative if not (path.startswith(".") or "/." in path))

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(f"{path!r} leaves {self.uri}; paths are relative to it.")
        return posixpath.join(self._root, path) if path else self._root

    def _cat(self, full: str, **limits: int | None) -> Any:
        # Left to itself s3fs sends a HEAD before every read, to split large files.
        try:
            return self._fs.cat_file(full, **limits, **({"max_concurrency": 1} if self._is_s3 else {}))
        except OSError as error:
            if _starts_after_end(error):
                return b""
            raise

    def _call(self, path: str, operation: Callable[[str], Result]) -> Result:
        """What an operation gives for the full path, tried again on remote stores; its failure is a StorageError."""
        full = self._full(path)
        try:
            if self.is_local:
                return operation(full)
            return self._patience.call(self.join(path), lambda: operation(full))
        except FileNotFoundError as error:
            raise MissingFileError(f"{self.join(path)} does not exist. Check the path or URI.") from error
        except PermissionError as error:
            raise StorageError(f"no access to {self.join(path)}: {error}. Check permissions or credentials.") from error
        except (OSError, BotoCoreError, ClientError, aiohttp.ClientError) as error:
            raise StorageError(
                f"cannot reach {self.join(path)}: {describe(error)}. "
                "Check the path, --storage-option endpoint_url and the network."
            ) from error
        except (TypeError, ValueError) as error:  # s3fs looks at its options when it first connects
            if self.is_local or not self.options:
                raise
            names = ", ".join(sorted(self.options))
            raise StorageError(
                f"cannot open {self.uri} with options {names}: {error}. Check --storage-option."
            ) from error


def _write_local(full: str, content: bytes) -> None:
    with _unfinished(full, content) as file:
        os.replace(file, full)


def _link_local(full: str, content: bytes) -> bool:
    with _unfinished(full, content) as file:
        try:
            os.link(file, full)
            return True
        except FileExistsError:
            return False


@contextlib.contextmanager
def _unfinished(full: str, content: bytes) -> Iterator[str]:
    """A hidden file beside another one with all of its content, safe on the disk; gone at the end."""
    os.makedirs(os.path.dirname(full), exist_ok=True)
    unfinished = posixpath.join(posixpath.dirname(full), f".{posixpath.basename(full)}.{uuid.uuid4().hex[:8]}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def _local_folders(top: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(top) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remote_folders(file_system: fsspec.AbstractFileSystem, top: str) -> list[str]:
    try:
        entries = file_system.ls(top, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory"]


def _starts_after_end(error: OSError) -> bool:
    cause = error.__cause__
    return isinstance(cause, ClientError) and cause.response.get("Error", {}).get("Code") == "InvalidRange"


def read_file(uri: str, options: Mapping[str, Any] | None = None, patience: Patience | None = None) -> bytes:
    """The content of one file; StorageError as `Storage.read`."""
    folder, name = split_uri(uri)
    return Storage(folder, options, patience).read(name)


def write_file(uri: str, content: bytes, options: Mapping[str, Any] | None = None) -> None:
    """Write one file, whole or not at all, as `Storage.write`."""
    folder, name = split_uri(uri)
    Storage(folder, options).write(name, content)


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


def _file_system_options(protocol: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    if protocol in (None, "file", "local"):
        return {}
    if protocol in _S3:
        return {**_S3_DEFAULTS, **options}
    return dict(options)
