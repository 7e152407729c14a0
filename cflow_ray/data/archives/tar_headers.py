"""The headers of a tar, within a limit: tarfile reads them whole, however long the tar says that they are."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

LONGEST_HEADERS = 2**20
"""Most bytes of all the headers of one member: of names, which no system lets be longer than 4096, and attributes."""

DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
"""What tarfile raises on damaged or hostile headers; the last where each header announces another."""


class _BoundedFile:
    """The file of a tar, of which no more than `left` bytes can be read; None for any number.

    A wrapper of the file rather than a TarInfo with private methods of its own: it counts the bytes wherever tarfile asks
    for them, which it does for long names, pax headers and sparse maps, for any number of them before one member, and, of
    some files, up to their end where a size is below zero.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.left: int | None = LONGEST_HEADERS

    def read(self, size: int = -1) -> bytes:
        if self.left is not None:
            if not 0 <= size <= self.left:
                raise tarfile.ReadError(f"headers of one member above {LONGEST_HEADERS} bytes")
            self.left -= size
        return cast(bytes, self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())


def open_tar(file: Any) -> tarfile.TarFile:
    """A tar whose `headers` can be read; raises one of `DAMAGE` where already the first is none."""
    return tarfile.open(fileobj=cast(IO[bytes], _BoundedFile(file)), mode="r:")


def headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar of `open_tar` in order, none of which is kept; raises one of `DAMAGE`."""
    file: object = tar.fileobj
    assert isinstance(file, _BoundedFile)
    while True:
        file.left = LONGEST_HEADERS
        info = tar.next()
        file.left = None  # the content has a limit of its own
        if info is None:
            return
        if sum(len(key) + len(value) for key, value in tar.pax_headers.items()) > LONGEST_HEADERS:
            raise tarfile.ReadError(f"headers of all members above {LONGEST_HEADERS} bytes")  # tarfile adds them up
        yield info
        tar.members = []  # type: ignore[attr-defined]  # not public, but there is no other way to drop them
