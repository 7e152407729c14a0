"""Archives: what is packed is what tarfile reads, ranges are exact, and no record is lost without a word."""

from __future__ import annotations

import errno
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import INDEX_SUFFIX, Member, Shard, ShardIndex, write_shards
from cflow_ray.data.archives import read_index as read_index_of
from cflow_ray.data.archives import read_records as read_records_of
from cflow_ray.errors import CflowRayError, StorageError
from cflow_ray.store.storage import Storage
from tests.tars import tar_of

Records = list[tuple[str, bytes]]

LONG = "/".join(["a very long folder name"] * 12) + "/0.png"
RECORDS: Records = [
    ("screw/test/good/000.png", bytes(range(256)) * 3),
    ("empty.png", b""),
    (LONG, b"long name"),
    ("grüße/测试/😀.png", b"\0" * 512),
    ("one.png", b"1"),
    ("y" * 101 + ".jpg", b"z" * 511),
    ("with space & 'quotes'.png", b"q" * 513),
]


def read_index(shard: Shard) -> ShardIndex:
    return read_index_of(shard, {}, ReadConfig())


def read_records(shard: Shard, members: Sequence[Member]) -> Iterator[tuple[str, bytes | CflowRayError]]:
    for record in read_records_of(shard, members, {}, ReadConfig()):
        yield record.key, record.content


def pack(storage: Storage, records: Records, shard_bytes: int = 10**6, name: str = "test") -> list[Shard]:
    return [Shard(storage.join(shard), "tar") for shard in write_shards(records, storage, name, shard_bytes)]


def without_index(storage: Storage) -> None:
    for path in storage.files():
        if path.endswith(INDEX_SUFFIX):
            storage.remove(path)


def read_tar(content: bytes) -> Records:
    """The oracle: Python's own tarfile."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(info.name, file.read()) for info in tar if (file := tar.extractfile(info))]


def read_all(shard: Shard) -> Records:
    return [(key, content) for key, content in read_records(shard, read_index(shard).members) if content_is(content)]


def content_is(content: bytes | CflowRayError) -> bool:
    if isinstance(content, CflowRayError):
        raise content
    return True


# -- packing


def test_tarfile_reads_what_was_packed(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    assert read_tar(storage.read("test-000000.tar")) == RECORDS
    assert read_all(shard) == RECORDS


def test_gnu_tar_lists_what_was_packed(gnu_tar: str, tmp_path: Path) -> None:
    pack(Storage(str(tmp_path)), RECORDS)
    command = [gnu_tar, "--quoting-style=literal", "-tf", str(tmp_path / "test-000000.tar")]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode().splitlines() == [
        k for k, _ in RECORDS
    ]


def test_the_index_says_where_the_bytes_lie(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    content = storage.read("test-000000.tar")
    index = json.loads(storage.read("test-000000.tar" + INDEX_SUFFIX))
    assert index["size"] == len(content)
    assert [(key, content[offset : offset + size]) for key, offset, size in index["members"]] == RECORDS
    assert read_index(shard).damage is None


def test_headers_say_the_same_as_the_index(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    indexed = read_index(shard)
    without_index(storage)
    assert read_index(shard) == indexed


def test_the_index_is_used_where_it_is(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    size = storage.size("test-000000.tar")
    other = ShardIndex((Member("said/by/the/index.png", 512, 1),))
    storage.write("test-000000.tar" + INDEX_SUFFIX, other.to_json(size))
    assert read_index(shard) == other


def other_version(index: dict[str, Any]) -> bytes:
    return json.dumps(index | {"format_version": 1}).encode()


def of_another_tar(index: dict[str, Any]) -> bytes:
    return json.dumps(index | {"size": index["size"] + 512, "members": []}).encode()


def with_odd_members(index: dict[str, Any]) -> bytes:
    return json.dumps(index | {"members": [["a", 1, 2, 3, 4]]}).encode()


@pytest.mark.parametrize(
    "edit", [other_version, of_another_tar, with_odd_members, lambda _: b"", lambda _: b"[]", lambda _: b"\xff{"]
)
def test_an_index_that_does_not_belong_to_the_tar_is_not_used(
    storage: Storage, edit: Callable[[dict[str, Any]], bytes]
) -> None:
    (shard,) = pack(storage, RECORDS)
    expected = read_index(shard)
    path = "test-000000.tar" + INDEX_SUFFIX
    storage.write(path, edit(json.loads(storage.read(path))))
    assert read_index(shard) == expected


def test_a_tar_that_was_replaced_is_read_anew(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    stale = storage.read("test-000000.tar" + INDEX_SUFFIX)
    pack(storage, RECORDS[:3])
    storage.write("test-000000.tar" + INDEX_SUFFIX, stale)
    assert read_all(shard) == RECORDS[:3]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=30),
    shard_bytes=st.integers(4096, 20_000),
    content=st.randoms(use_true_random=False),
)
def test_shards_hold_every_record_once_and_keep_to_their_size(
    sizes: list[int], shard_bytes: int, content: random.Random
) -> None:
    storage = Storage("memory://packing")
    for path in storage.files():
        storage.remove(path)
    records = [(f"c/{number}.png", content.randbytes(size)) for number, size in enumerate(sizes)]
    shards = pack(storage, records, shard_bytes)
    assert [record for shard in shards for record in read_all(shard)] == records
    for shard in shards:
        packed = read_all(shard)
        overhead = 1024 * len(packed) + 1024  # header and padding of each, and the end
        assert sum(len(data) for _, data in packed) <= shard_bytes
        assert Storage(shard.uri).size("") <= shard_bytes + overhead


def test_a_record_larger_than_a_shard_has_one_of_its_own(storage: Storage) -> None:
    records = [("a", b"1" * 100), ("b", b"2" * 9000), ("c", b"3" * 100)]
    shards = pack(storage, records, 4096)
    assert [[key for key, _ in read_all(shard)] for shard in shards] == [["a"], ["b"], ["c"]]


def test_shards_are_numbered_in_order_of_their_records(storage: Storage) -> None:
    names = write_shards([(f"{number:02}.png", bytes(3000)) for number in range(12)], storage, "val", 4096)
    assert names == [f"val-{number:06}.tar" for number in range(12)]
    assert storage.files() == sorted(names + [name + INDEX_SUFFIX for name in names])


def test_the_same_records_give_the_same_bytes(storage: Storage) -> None:
    contents = []
    for name in ("first", "again"):
        write_shards(iter(RECORDS), storage, name, 2000)
        contents.append([storage.read(path) for path in storage.files() if path.startswith(name)])
    assert contents[0] == contents[1]


def test_nothing_to_pack_writes_nothing(storage: Storage) -> None:
    assert write_shards([], storage, "test", 4096) == []
    assert storage.files() == []


# -- reading ranges


def test_any_run_of_records_is_read_alone(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    members = read_index(shard).members
    for first in range(len(members)):
        for end in range(first + 1, len(members) + 1):
            assert list(read_records(shard, members[first:end])) == RECORDS[first:end]


def test_a_range_fetches_its_own_bytes_alone(storage: Storage, count_reads: Callable[[], list[int]]) -> None:
    records = [(f"{number}.png", bytes([number]) * 10_000) for number in range(50)]
    (shard,) = pack(storage, records)
    members = read_index(shard).members
    fetched = count_reads()
    assert list(read_records(shard, members[20:23])) == records[20:23]
    assert len(fetched) == 1
    assert fetched[0] <= 3 * (10_000 + 1024)


def test_records_of_a_tar_that_is_gone_are_errors_each(storage: Storage) -> None:
    (shard,) = pack(storage, RECORDS)
    members = read_index(shard).members
    storage.remove("test-000000.tar")
    contents = list(read_records(shard, members))
    assert [key for key, _ in contents] == [key for key, _ in RECORDS]
    assert all(isinstance(content, StorageError) for _, content in contents)


# -- damage


def write_tar(storage: Storage, content: bytes) -> Shard:
    storage.write("x.tar", content)
    return Shard(storage.join("x.tar"), "tar")


SIX: Records = [(f"c/{number}.png", bytes([number + 1]) * 700) for number in range(6)]  # 1536 bytes each in the tar


def test_a_whole_tar_has_no_damage(storage: Storage) -> None:
    index = read_index(write_tar(storage, tar_of(SIX)))
    assert (len(index.members), index.damage) == (6, None)


def test_an_empty_but_whole_tar_has_neither_records_nor_damage(storage: Storage) -> None:
    assert read_index(write_tar(storage, tar_of([]))) == ShardIndex(())


def test_a_tar_cut_anywhere_keeps_its_whole_records_and_says_that_there_is_damage(storage: Storage) -> None:
    content = tar_of(SIX)
    for end in [*range(0, 6 * 1536, 97), *range(0, 6 * 1536 + 1, 512)]:
        shard = write_tar(storage, content[:end])
        index = read_index(shard)
        assert index.damage is not None
        assert "damaged tar" in index.damage
        assert [member.key for member in index.members] == [key for key, _ in SIX[: len(index.members)]]
        whole = (end + 324) // 1536  # records whose bytes are all there; the last 324 of each are padding
        assert len(index.members) in (whole, whole + 1)
        for number, member in enumerate(index.members):
            ((_, read),) = read_records(shard, [member])
            assert read == SIX[number][1] if number < whole else isinstance(read, StorageError)


def test_a_record_whose_end_is_missing_is_an_error_that_names_it(storage: Storage) -> None:
    (shard,) = pack(storage, SIX)
    content = storage.read("test-000000.tar")
    members = read_index(shard).members
    storage.write("test-000000.tar", content[: members[4].offset + 100])
    read = list(read_records(shard, members))
    assert read[:4] == SIX[:4]
    for number in (4, 5):
        key, error = read[number]
        assert key == SIX[number][0]
        assert isinstance(error, StorageError)
        assert key in str(error)


def test_a_header_destroyed_in_the_middle_is_damage_not_the_end(storage: Storage) -> None:
    content = bytearray(tar_of(SIX))
    content[3 * 1536 : 3 * 1536 + 512] = b"\xaa" * 512
    index = read_index(write_tar(storage, bytes(content)))
    assert [member.key for member in index.members] == [key for key, _ in SIX[:3]]
    assert index.damage is not None


@pytest.mark.parametrize("content", [b"", b"short", b"text that is no tar at all\n" * 100, b"\x1f\x8b" + bytes(2000)])
def test_what_is_no_tar_is_damage(storage: Storage, content: bytes) -> None:
    index = read_index(write_tar(storage, content))
    assert index.members == ()
    assert index.damage is not None
    assert "\n" not in index.damage


@settings(max_examples=150, deadline=None)
@given(
    block=st.integers(0, 18),
    mutations=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=12),
    checked=st.booleans(),
)
def test_any_damage_to_headers_leaves_records_or_damage(
    block: int, mutations: list[tuple[int, int]], checked: bool
) -> None:
    """Whatever the bytes are, the index is made; with `checked` the header's checksum is made to fit the damage."""
    content = bytearray(tar_of(SIX))
    start = 512 * block
    for at, value in mutations:
        content[start + at] = value
    if checked:
        content[start + 148 : start + 156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    index = read_index(write_tar(Storage("memory://damaged-tars"), bytes(content)))
    assert len(index.members) == 6 or index.damage is not None or block % 3 == 0  # a header may turn into a link's


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80\0\0\0\x7f" + b"\xff" * 7])
def test_a_size_beyond_reason_is_damage(storage: Storage, size: bytes) -> None:
    content = bytearray(tar_of(SIX))
    header = 2 * 1536
    content[header + 124 : header + 136] = size
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    index = read_index(write_tar(storage, bytes(content)))
    assert [member.key for member in index.members][:2] == ["c/0.png", "c/1.png"]
    assert index.damage is not None


class BrokenConnection(io.BytesIO):
    """A file whose second half cannot be fetched at the moment."""

    def __init__(self, content: bytes, error: OSError) -> None:
        super().__init__(content)
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 4000:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset by peer"), TimeoutError("timed out"), OSError(errno.EINVAL, "token expired")]
)
def test_a_connection_that_breaks_is_no_damage_of_the_tar(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    shard = write_tar(storage, tar_of(SIX))
    content = storage.read("x.tar")
    monkeypatch.setattr(Storage, "open", lambda self, path: BrokenConnection(content, error))
    with pytest.raises(StorageError, match=rf"x\.tar.*{re.escape(str(error))}"):
        read_index(shard)


def test_damage_survives_the_way_through_json() -> None:
    index = ShardIndex((Member("ü.png", 512, 7), Member("x", 2048, 0)), "damaged tar: unexpected end of data")
    assert ShardIndex.from_json(index.to_json()) == index
    assert ShardIndex.from_json(index.to_json(100), 100) == index
    assert ShardIndex.from_json(index.to_json(100), 101) is None


# -- archives of other tools


@pytest.fixture
def gnu_tar() -> str:
    """The command, where it is GNU's."""
    found = shutil.which("tar") or "false"
    if b"GNU tar" not in subprocess.run([found, "--version"], capture_output=True, check=False).stdout:
        pytest.skip("no GNU tar on this machine")
    return found


@pytest.mark.parametrize("style", ["ustar", "gnu", "pax", "v7", "oldgnu"])
def test_tars_of_gnu_tar_keep_paths_below_their_root(gnu_tar: str, tmp_path: Path, style: str) -> None:
    for key, content in SIX:
        path = tmp_path / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "data" / "c" / "link.png").symlink_to("0.png")
    command = [
        "tar",
        f"--format={style}",
        "--sort=name",
        "-C",
        str(tmp_path / "data"),
        "-cf",
        str(tmp_path / "x.tar"),
        ".",
    ]
    subprocess.run(command, check=True)  # writes ./c/0.png
    shard = Shard(str(tmp_path / "x.tar"), "tar")
    *members, link = sorted(read_index(shard).members, key=lambda member: member.key)
    assert list(read_records(shard, members)) == SIX
    assert link.key == "c/link.png"
    assert link.problem is not None
    assert link.problem.startswith("not_a_file: a link to '0.png'")
