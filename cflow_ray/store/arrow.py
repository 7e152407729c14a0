"""A tree of files as a file system of pyarrow's."""

from __future__ import annotations

import fsspec
from pyarrow.fs import FileInfo, FileSystem, FileType, FSSpecHandler, PyFileSystem

from cflow_ray.store.listing import has_entries, is_listed
from cflow_ray.store.patience import leave_tries_to_botocore


def of_fsspec(file_system: fsspec.AbstractFileSystem) -> FileSystem:
    """The same files through pyarrow."""
    return PyFileSystem(FSSpecHandler(file_system))


def of_s3(file_system: fsspec.AbstractFileSystem) -> FileSystem:
    """The same, which asks by listing whether something is there."""
    return PyFileSystem(_ListingHandler(file_system))


class _ListingHandler(FSSpecHandler):  # type: ignore[misc]
    def __init__(self, file_system: fsspec.AbstractFileSystem) -> None:
        super().__init__(file_system)
        leave_tries_to_botocore(file_system)

    def __reduce__(self) -> tuple[type[_ListingHandler], tuple[fsspec.AbstractFileSystem]]:
        return _ListingHandler, (self.fs,)  # a file system forgets its number of tries when it is pickled

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._listed(path.rstrip("/")) for path in paths]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: a folder of S3 is there with its first file."""

    def _listed(self, path: str) -> FileInfo:
        if is_listed(self.fs, path):
            return FileInfo(path, FileType.File)
        kind = FileType.Directory if has_entries(self.fs, path) else FileType.NotFound
        return FileInfo(path, kind)
