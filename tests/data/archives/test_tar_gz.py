"""Compressed tars are streamed: every record in order, and a last one that tells of damage."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc

import pytest

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Record, Shard, is_streamed, read_index, read_records, stream_records
from cflow_ray.store.storage import Storage
from tests.tars import tar_of

SIX = [(f"c/{number}.png", bytes([number + 1]) * 700) for number in range(6)]


def stream(storage: Storage, content: bytes, how: ReadConfig | None = None) -> list[Record]:
    storage.write("x.tar.gz", content)
    shard = Shard(storage.join("x.tar.gz"), "tar.gz")
    assert is_streamed(shard)
    return list(stream_records(shard, {}, how or ReadConfig()))


def kinds(records: list[Record]) -> list[str | None]:
    return [getattr(record.content, "kind", None) for record in records]


def test_all_records_come_in_order(storage: Storage) -> None:
    records = stream(storage, gzip.compress(tar_of(SIX)))
    assert [(record.key, record.content) for record in records] == SIX


def test_several_gzip_streams_end_to_end_are_one(storage: Storage) -> None:
    content = tar_of(SIX)
    records = stream(storage, gzip.compress(content[:2000]) + gzip.compress(content[2000:]))
    assert [(record.key, record.content) for record in records] == SIX


def test_an_empty_tar_has_no_record(storage: Storage) -> None:
    assert stream(storage, gzip.compress(tar_of([]))) == []


def test_cut_anywhere_it_gives_whole_records_and_then_damage(storage: Storage) -> None:
    content = gzip.compress(tar_of([(key, bytes(range(256)) * 3) for key, _ in SIX]), 0)
    for end in [0, 1, 5, *range(10, len(content) - 1, 211), len(content) - 1]:
        *whole, last = stream(storage, content[:end])
        assert kinds([last]) == ["damaged_archive"], end
        assert [record.key for record in whole] == [key for key, _ in SIX[: len(whole)]]
        assert all(record.content == bytes(range(256)) * 3 for record in whole)


def test_a_header_destroyed_in_the_middle_is_damage_not_the_end(storage: Storage) -> None:
    content = bytearray(tar_of(SIX))
    content[3 * 1536 : 3 * 1536 + 512] = b"\xaa" * 512
    records = stream(storage, gzip.compress(bytes(content)))
    assert kinds(records) == [None, None, None, "damaged_archive"]


def test_what_is_no_gzip_is_damage(storage: Storage) -> None:
    assert kinds(stream(storage, b"no gzip at all" * 50)) == ["damaged_archive"]
    assert kinds(stream(storage, gzip.compress(b"no tar at all" * 500))) == ["damaged_archive"]


def test_a_member_above_the_limit_is_passed_over_in_little_memory(storage: Storage) -> None:
    content = gzip.compress(tar_of([("0.png", b"0"), ("bomb.png", bytes(60 * 10**6)), ("1.png", b"1")]))
    tracemalloc.start()
    records = stream(storage, content, ReadConfig(max_image_size=10**6))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kinds(records) == [None, "too_large", None]
    assert peak < 20 * 10**6


def test_the_keys_of_a_stream_are_not_kept(storage: Storage) -> None:
    content = gzip.compress(tar_of((f"{'n' * (5 * 10**5)}/{number}.png", b"1") for number in range(40)), 1)
    storage.write("x.tar.gz", content)
    tracemalloc.start()
    count = sum(1 for _ in stream_records(Shard(storage.join("x.tar.gz"), "tar.gz"), {}, ReadConfig()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40
    assert peak < 18 * 10**6


def test_a_repeated_key_is_an_error(storage: Storage) -> None:
    records = stream(storage, gzip.compress(tar_of([SIX[0], SIX[1], SIX[0]])))
    assert kinds(records) == [None, None, "duplicate_key"]


@pytest.mark.parametrize("streamed", [False, True])
def test_webdataset_side_cars_are_fields_of_their_image(storage: Storage, streamed: bool) -> None:
    content = tar_of(
        [
            ("screw/0.png", b"0"),
            ("screw/0.json", b'{"line": 3, "part": "screw"}'),
            ("screw/0.cls", b"7\n"),
            ("screw/1.jpg", b"1"),
            ("screw/1.json", b"no json"),
            ("lonely.json", b"{}"),
        ]
    )
    if streamed:
        records = stream(storage, gzip.compress(content))
    else:
        storage.write("x.tar", content)
        shard = Shard(storage.join("x.tar"), "tar")
        records = list(read_records(shard, read_index(shard, {}, ReadConfig()).members, {}, ReadConfig()))
    assert [(record.key, record.content) for record in records] == [
        ("screw/0.png", b"0"),
        ("screw/1.jpg", b"1"),
        ("lonely.json", b"{}"),
    ]
    assert records[0].fields == {"line": 3, "part": "screw", "cls": "7"}
    assert records[1].fields == {}


@pytest.mark.parametrize("streamed", [False, True])
def test_hostile_members_are_errors(storage: Storage, streamed: bool) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name in ("../up.png", "/etc/0.png", "a/../../b.png", "caf\udce9.png", "fine.png"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
        for name, kind in (
            ("hard.png", tarfile.LNKTYPE),
            ("soft.png", tarfile.SYMTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "fine.png"
            tar.addfile(info)
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    if streamed:
        records = stream(storage, gzip.compress(buffer.getvalue()))
    else:
        storage.write("x.tar", buffer.getvalue())
        shard = Shard(storage.join("x.tar"), "tar")
        records = list(read_records(shard, read_index(shard, {}, ReadConfig()).members, {}, ReadConfig()))
    assert kinds(records) == [*["unsafe_name"] * 4, None, *["not_a_file"] * 3]
    assert all(record.key.encode() for record in records)  # text that every table can hold
    assert records[3].key == "caf\\xe9.png"
