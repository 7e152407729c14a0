"""A shard: one source of records, and the name it has in a table."""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass
from typing import Literal

Kind = Literal["tar", "tar.gz", "zip", "parquet", "images"]

_ENDINGS: dict[str, Kind] = {
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".zip": "zip",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class Shard:
    """An archive file, or image files below a folder."""

    uri: str
    """Of the file or, for `images`, of the folder."""
    kind: Kind
    group: int | None = None
    """Which of the groups into which the many images of one folder are divided."""

    @property
    def id(self) -> str:
        """A name for folders and image ids: the file's own, made unique by a digest of its URI."""
        stem = posixpath.basename(self.uri.rstrip("/")) or "root"
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem.removesuffix(".tar"))
        group = "" if self.group is None else f"-{self.group:06d}"
        return f"{plain}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}{group}"


def archive_kind(name: str) -> Kind | None:
    """The kind of archive that a file's name says it is, in any case; None for other files."""
    lower = name.lower()
    return next((kind for ending, kind in _ENDINGS.items() if lower.endswith(ending)), None)
