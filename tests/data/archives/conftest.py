"""A count of what archives fetch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cflow_ray.store.storage import Storage

CountReads = Callable[[], list[int]]


@pytest.fixture
def count_reads(monkeypatch: pytest.MonkeyPatch) -> CountReads:
    """Begins to count: the bytes of every read of a storage from the call on."""

    def begin() -> list[int]:
        read, fetched = Storage.read, list[int]()

        def counted(self: Storage, path: str, start: int | None = None, end: int | None = None) -> bytes:
            content = read(self, path, start, end)
            fetched.append(len(content))
            return content

        monkeypatch.setattr(Storage, "read", counted)
        return fetched

    return begin
