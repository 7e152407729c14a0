"""What a user may name as input, and the shards it stands for."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cflow_ray.config import ReadConfig
from cflow_ray.data.archives import Shard, ShardIndex, read_records
from cflow_ray.data.archives import find_shards as find_shards_of
from cflow_ray.data.archives import images as image_files
from cflow_ray.errors import DataError, StorageError
from cflow_ray.store.storage import Storage

READ = ReadConfig()


def find(*inputs: str) -> list[tuple[Shard, ShardIndex | None]]:
    return find_shards_of(inputs, {}, READ)


def shards(*inputs: str) -> list[Shard]:
    return [shard for shard, _ in find(*inputs)]


def contents(shard: Shard, index: ShardIndex | None) -> dict[str, Any]:
    assert index is not None
    return {record.key: record.content for record in read_records(shard, index.members, {}, READ)}


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


# shards


def test_shards_of_one_name_in_several_folders_have_ids_of_their_own() -> None:
    uris = ["s3://a/x/test-000000.tar", "s3://a/y/test-000000.tar", "s3://b/x/test-000000.tar", "/x/test-000000.tar"]
    ids = [Shard(uri, "tar").id for uri in uris]
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("test-000000-") for name in ids)
    assert len({Shard("s3://a/x", "images", group).id for group in (None, 0, 1)}) == 3


@given(uri=st.text(min_size=1))
def test_an_id_is_one_harmless_part_of_a_path(uri: str) -> None:
    name = Shard(uri, "tar").id
    assert "/" not in name
    assert not name.startswith("..")
    assert name == Shard(uri, "tar").id


# files and folders


def test_a_folder_is_its_archives_of_every_kind_and_its_images(storage: Storage) -> None:
    images = parquet(pa.table({"image": [b"1"]}))
    for path in ("one.tar", "in/b.TAR", "in/sub/a.tar", "in/a.tar.index.json", "in/sub/0.JPG", "in/9.png", "in/readme"):
        storage.write(path, b"")
    for path in ("in/c.zip", "in/d.tar.gz", "in/e.tgz"):
        storage.write(path, b"")
    storage.write("in/f.parquet", images)
    storage.write("in/labels.parquet", parquet(pa.table({"image": ["9.png"]})))
    found = find(storage.join("one.tar"), storage.join("in/"))
    assert [shard for shard, _ in found] == [
        Shard(storage.join("one.tar"), "tar"),
        Shard(storage.join("in/b.TAR"), "tar"),
        Shard(storage.join("in/c.zip"), "zip"),
        Shard(storage.join("in/d.tar.gz"), "tar.gz"),
        Shard(storage.join("in/e.tgz"), "tar.gz"),
        Shard(storage.join("in/f.parquet"), "parquet"),
        Shard(storage.join("in/sub/a.tar"), "tar"),
        Shard(storage.join("in"), "images"),
    ]
    index = found[-1][1]
    assert index is not None
    assert [member.key for member in index.members] == ["9.png", "sub/0.JPG"]


def test_an_image_by_itself_is_an_input(storage: Storage) -> None:
    storage.write("screw/0.png", b"0")
    ((shard, index),) = find(storage.join("screw/0.png"))
    assert contents(shard, index) == {"0.png": b"0"}


def test_images_are_read_in_order_whatever_else_lies_there(storage: Storage) -> None:
    for path, content in {"b/2.png": b"2", "a/1.JPG": b"1", "a.png": b"0"}.items():
        storage.write(path, content)
    for junk in ("readme.txt", "a/.hidden.png", "b/2.png.md5"):
        storage.write(junk, b"")
    ((shard, index),) = find(storage.uri)
    assert list(contents(shard, index).items()) == [("a.png", b"0"), ("a/1.JPG", b"1"), ("b/2.png", b"2")]


def test_a_file_that_is_gone_is_a_record_with_its_error(storage: Storage) -> None:
    for name in ("0.png", "1.png", "2.png"):
        storage.write(name, name.encode())
    ((shard, index),) = find(storage.uri)
    storage.remove("1.png")
    found = contents(shard, index)
    assert (found["0.png"], found["2.png"]) == (b"0.png", b"2.png")
    assert isinstance(found["1.png"], StorageError)
    assert "1.png does not exist" in str(found["1.png"])


def test_many_images_are_groups_that_hold_each_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "GROUP", 3)
    for number in range(8):
        storage.write(f"{number}.png", b"")
    found = find(storage.uri)
    assert [shard.group for shard, _ in found] == [0, 1, 2]
    keys = [member.key for _, index in found if index for member in index.members]
    assert keys == [f"{number}.png" for number in range(8)]


def test_an_image_above_the_limit_is_not_read(storage: Storage) -> None:
    storage.write("0.png", bytes(100))
    storage.write("1.png", bytes(101))
    limit = ReadConfig(max_image_size=100)
    ((shard, index),) = find(storage.uri)
    assert index is not None
    whole, large = read_records(shard, index.members, {}, limit)
    assert whole.content == bytes(100)
    assert getattr(large.content, "kind", None) == "too_large"


def test_an_input_given_twice_is_one_shard(storage: Storage) -> None:
    storage.write("tars/a.tar", b"")
    assert len(shards(storage.join("tars"), storage.join("tars/a.tar"), storage.join("tars/"))) == 1


def test_images_of_several_inputs_are_all_there_and_each_once(storage: Storage) -> None:
    for name in ("0.png", "1.png", "2.png", "sub/3.png"):
        storage.write(name, name.encode())
    uris = [storage.join(name) for name in ("1.png", "0.png", "1.png")]
    ((shard, index),) = find(*uris)  # as a shell expands *.png
    assert list(contents(shard, index)) == ["1.png", "0.png"]
    ((shard, index),) = find(*uris, storage.uri)
    assert contents(shard, index) == {name: name.encode() for name in ("1.png", "0.png", "2.png", "sub/3.png")}


# globs


def test_a_glob_keeps_to_its_folder_unless_it_says_otherwise(storage: Storage) -> None:
    for path in ("in/a-0.tar", "in/a-1.tar", "in/b-0.tar", "in/sub/a-2.tar", "in/sub/0.png"):
        storage.write(path, b"")
    assert shards(storage.join("in/a-*.tar")) == [Shard(storage.join(f"in/a-{n}.tar"), "tar") for n in (0, 1)]
    assert shards(storage.join("in/a-?.tar")) == shards(storage.join("in/a-[01].tar"))
    assert shards(storage.join("in/**/a-*.tar")) == [
        Shard(storage.join(path), "tar") for path in ("in/a-0.tar", "in/a-1.tar", "in/sub/a-2.tar")
    ]
    ((shard, index),) = find(storage.join("*/sub/*.png"))
    assert contents(shard, index) == {"in/sub/0.png": b""}


def test_a_file_whose_name_looks_like_a_glob_is_that_file(storage: Storage) -> None:
    for name in ("a[1].tar", "a1.tar"):
        storage.write(name, b"")
    assert shards(storage.join("a[1].tar")) == [Shard(storage.join("a[1].tar"), "tar")]


def test_a_glob_that_matches_nothing_is_named(storage: Storage) -> None:
    storage.write("a.tar", b"")
    with pytest.raises(DataError, match=r"b-\*\.tar matches nothing"):
        find(storage.join("b-*.tar"))


# manifests


@pytest.fixture
def line(storage: Storage) -> Storage:
    for path in ("line/a.tar", "line/screw/0.png", "line/screw/1.png", "line/nut/2.png"):
        storage.write(path, path.encode())
    return storage


def test_a_list_names_files_beside_it_or_anywhere(line: Storage) -> None:
    text = f"# tonight\nscrew/1.png\n\n./a.tar\n{line.join('line/nut/2.png')}\nscrew/0.png\n"
    line.write("line/tonight.txt", b"\xef\xbb\xbf" + text.encode())
    found = find(line.join("line/tonight.txt"))
    assert found[0] == (Shard(line.join("line/a.tar"), "tar"), None)
    read = [list(contents(shard, index).items()) for shard, index in found[1:]]
    assert read[0] == [("screw/1.png", b"line/screw/1.png"), ("screw/0.png", b"line/screw/0.png")]
    ((key, content),) = read[1]
    assert key.endswith("line/nut/2.png")
    assert content == b"line/nut/2.png"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_other_columns_of_a_table_are_fields(line: Storage, kind: str) -> None:
    if kind == "csv":
        line.write("line/m.csv", b"path,part\nscrew/0.png,screw\nnut/2.png,nut\n")
    else:
        line.write(
            "line/m.parquet", parquet(pa.table({"path": ["screw/0.png", "nut/2.png"], "part": ["screw", "nut"]}))
        )
    ((shard, index),) = find(line.join(f"line/m.{kind}"))
    assert index is not None
    records = list(read_records(shard, index.members, {}, READ))
    assert [(record.key, record.fields) for record in records] == [
        ("screw/0.png", {"part": "screw"}),
        ("nut/2.png", {"part": "nut"}),
    ]
    assert records[1].content == b"line/nut/2.png"


def test_a_table_with_bytes_in_lists_alone_is_a_manifest(line: Storage) -> None:
    table = pa.table({"path": ["screw/0.png"], "digests": pa.array([[b"1", b"2"]], pa.list_(pa.binary()))})
    line.write("line/m.parquet", parquet(table))
    ((shard, index),) = find(line.join("line/m.parquet"))
    assert shard.kind == "images"
    assert index is not None
    assert [member.key for member in index.members] == ["screw/0.png"]


def test_a_file_that_a_manifest_names_twice_is_scored_once(line: Storage) -> None:
    line.write("line/m.txt", b"screw/0.png\nscrew/0.png\n")
    ((shard, index),) = find(line.join("line/m.txt"))
    assert index is not None
    first, second = read_records(shard, index.members, {}, READ)
    assert isinstance(first.content, bytes)
    assert getattr(second.content, "kind", None) == "duplicate_key"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", b"\n# nothing\n", "names nothing"),
        ("m.txt", b"readme.md\n", "names 'readme.md', which is no archive and no image"),
        ("m.txt", b"\xff\xfe", "no UTF-8"),
        ("m.csv", b"place\nscrew/0.png\n", "without a place"),
    ],
)
def test_a_manifest_that_cannot_be_followed_is_said(line: Storage, name: str, content: bytes, message: str) -> None:
    line.write(name, content)
    with pytest.raises(DataError, match=message):
        find(line.join(name))


# what is no input


def test_a_missing_input_is_named(storage: Storage) -> None:
    storage.write("tars/a.tar", b"")
    for missing in ("nowhere", "tars/b.tar"):
        with pytest.raises(DataError, match=rf"{missing} does not exist\. Give a file"):
            find(storage.join("tars"), storage.join(missing))


def test_an_input_without_records_is_named(storage: Storage) -> None:
    storage.write("docs/readme.md", b"")
    storage.write("single.doc", b"")
    with pytest.raises(DataError, match="docs holds neither archives nor images"):
        find(storage.join("docs"))
    with pytest.raises(DataError, match=r"single\.doc is no archive, image or manifest"):
        find(storage.join("single.doc"))
