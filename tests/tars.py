"""Tar files as Python's tarfile writes them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable


def tar_of(records: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of files by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in records:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
