"""Zip files: what zipfile writes is read in ranges; what is hostile or damaged is an error of its own record."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Record, Shard, ShardIndex, read_index, read_records
from cflow_ray.errors import CflowRayError
from cflow_ray.store.storage import Storage

READ = ReadConfig(max_image_size=10**6)
FILES = {"screw/0.png": b"a" * 5000, "empty.png": b"", "grüße/😀.png": bytes(range(256)) * 40, "nut/1.png": b"1"}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir("folder")
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def put(storage: Storage, content: bytes) -> Shard:
    storage.write("x.zip", content)
    return Shard(storage.join("x.zip"), "zip")


def index_of(shard: Shard) -> ShardIndex:
    index = read_index(shard, {}, READ)
    copy = ShardIndex.from_json(index.to_json())
    assert copy == index
    return index


def records_of(shard: Shard) -> list[Record]:
    return list(read_records(shard, index_of(shard).members, {}, READ))


def kinds(records: list[Record]) -> list[str | None]:
    return [getattr(record.content, "kind", None) for record in records]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_members_are_read_whatever_packs_them(storage: Storage, method: int) -> None:
    shard = put(storage, zipped(FILES, method))
    assert {record.key: record.content for record in records_of(shard)} == FILES
    members = index_of(shard).members
    for first in range(len(members)):
        for end in range(first + 1, len(members) + 1):
            part = list(read_records(shard, members[first:end], {}, READ))
            assert [record.content for record in part] == list(FILES.values())[first:end]


def test_a_zip_that_was_streamed_has_its_sizes_behind_the_members(storage: Storage) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    shard = put(storage, pipe.getvalue())
    assert {record.key: record.content for record in records_of(shard)} == FILES


def test_a_few_members_fetch_their_own_bytes_alone(storage: Storage, count_reads: Callable[[], list[int]]) -> None:
    files = {f"{number}.png": bytes([number]) * 20_000 for number in range(50)}
    shard = put(storage, zipped(files, zipfile.ZIP_STORED))
    members = index_of(shard).members
    fetched = count_reads()
    found = list(read_records(shard, members[20:23], {}, READ))
    assert [record.content for record in found] == list(files.values())[20:23]
    assert len(fetched) == 1
    assert fetched[0] <= 3 * 20_200


def test_a_bomb_is_refused_by_what_it_says_of_itself(storage: Storage) -> None:
    shard = put(storage, zipped({"bomb.png": bytes(50 * 10**6), "0.png": b"0"}))
    assert storage.size("x.zip") < 10**5
    assert kinds(records_of(shard)) == ["too_large", None]


def test_a_bomb_that_lies_is_cut_off_at_what_it_says(storage: Storage) -> None:
    content = bytearray(zipped({"bomb.png": bytes(50 * 10**6)}))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = content.rindex(signature) + at
        content[place : place + 4] = (1000).to_bytes(4, "little")
    assert kinds(records_of(put(storage, bytes(content)))) == ["damaged_member"]


def test_a_member_with_a_wrong_byte_is_an_error_and_the_others_are_read(storage: Storage) -> None:
    content = bytearray(zipped(FILES, zipfile.ZIP_STORED))
    content[content.index(b"aaaa") + 7] ^= 1
    records = records_of(put(storage, bytes(content)))
    assert kinds(records) == ["damaged_member", None, None, None]
    assert [record.content for record in records[1:]] == list(FILES.values())[1:]


def test_names_that_lead_elsewhere_and_links_are_errors(storage: Storage) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("../up.png", "/etc/0.png", "a/../../b.png", "C:/x.png", "fine.png", "fine.png"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile's, of the name that is there twice
                archive.writestr(name, b"1")
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert kinds(records_of(put(storage, buffer.getvalue()))) == [
        *["unsafe_name"] * 4,
        *[None, "duplicate_key", "not_a_file"],
    ]


def test_an_encrypted_member_is_an_error(storage: Storage) -> None:
    content = bytearray(zipped({"0.png": b"0"}))
    content[content.rindex(b"PK\1\2") + 8] |= 1
    assert kinds(records_of(put(storage, bytes(content)))) == ["encrypted"]


@pytest.mark.parametrize("content", [b"", b"no zip at all" * 100, zipped(FILES)[:-30], zipped(FILES)[:400]])
def test_what_is_no_whole_zip_is_damage(storage: Storage, content: bytes) -> None:
    index = index_of(put(storage, content))
    assert index.members == ()
    assert index.damage is not None
    assert index.damage.startswith("damaged zip: ")


def test_a_record_without_a_name_is_an_unsafe_name(storage: Storage) -> None:
    content = bytearray(zipped({"0.png": b"0", "1.png": b"1"}))
    content[content.rindex(b"PK\1\2") + 46] = 0  # the name of the second in the directory, which ends there
    assert kinds(records_of(put(storage, bytes(content)))) == [None, "unsafe_name"]


@settings(max_examples=150, deadline=None)
@given(mutations=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_damage_leaves_records_or_damage(mutations: list[tuple[int, int]]) -> None:
    """Whatever the bytes are, nothing is raised and no record has bytes that the directory does not vouch for."""
    content = bytearray(zipped(FILES))
    for at, value in mutations:
        content[at % len(content)] = value
    shard = put(Storage("memory://damaged-zips"), bytes(content))
    for record, member in zip(records_of(shard), index_of(shard).members, strict=True):
        assert record.key == member.key
        assert member.packed is not None
        assert isinstance(record.content, CflowRayError) or zlib.crc32(record.content) == member.packed[2]
