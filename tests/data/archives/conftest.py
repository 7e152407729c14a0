"""A count of what archives fetch, and a reader of tars in both ways that there are."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Record, Shard, read_index, read_records, stream_records
from cflow_ray.errors import RecordError
from cflow_ray.store.storage import Storage

CountReads = Callable[[], list[int]]
ReadTar = Callable[[bytes], list[Record]]


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


@pytest.fixture(params=["tar", "tar.gz"])
def read_tar(storage: Storage, request: pytest.FixtureRequest) -> ReadTar:
    """The records of a tar and of its damage: by its index or, compressed, from start to end."""

    def by_index(content: bytes) -> list[Record]:
        storage.write("x.tar", content)
        shard = Shard(storage.join("x.tar"), "tar")
        index = read_index(shard, {}, ReadConfig())
        damage = [Record("", RecordError(index.damage, "damaged_archive"))] if index.damage else []
        return [*read_records(shard, index.members, {}, ReadConfig()), *damage]

    def streamed(content: bytes) -> list[Record]:
        storage.write("x.tar.gz", gzip.compress(content, 1))
        return list(stream_records(Shard(storage.join("x.tar.gz"), "tar.gz"), {}, ReadConfig()))

    return by_index if request.param == "tar" else streamed
