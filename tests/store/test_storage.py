"""Storage: the same tree on every kind of storage, whole writes, and failures that name the place."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.errors import MissingFileError, StorageError
from cflow_ray.store.storage import Storage, split_uri
from tests.stores import Place

FILES = {"z.bin": b"zz", "a/2.png": b"two", "a/b/1.png": b"", "a/b c/ü.png": b"umlaut", "ab/x": b"x"}


@pytest.fixture
def filled(storage: Storage) -> Storage:
    for path, content in FILES.items():
        storage.write(path, content)
    return storage


def test_what_is_written_is_read_and_replaces_what_was_there(storage: Storage) -> None:
    storage.write("folder/file", b"old and long")
    storage.write("folder/file", b"new")
    assert storage.read("folder/file") == b"new"
    assert storage.size("folder/file") == 3
    with storage.open("folder/file") as file:
        file.seek(1)
        assert file.read() == b"ew"


def written_twice(storage: Storage) -> tuple[list[bool], bytes, list[str]]:
    """What two writes of a new file say, then its content and all files."""
    said = [storage.write_new("folder/file", content) for content in (b"first", b"second")]
    return said, storage.read("folder/file"), storage.files("folder")


def test_a_new_file_is_written_once(storage: Storage) -> None:
    assert written_twice(storage) == ([True, False], b"first", ["folder/file"])


@pytest.mark.s3
@pytest.mark.parametrize("place", ["moto", "swift"], indirect=True)
def test_a_new_file_is_written_once_on_s3(place: Place) -> None:
    """moto by a conditional write, Swift, which has none, by looking first."""
    storage = Storage(f"{place.root}/new", place.options)
    assert written_twice(storage) == ([True, False], b"first", ["folder/file"])


def test_files_and_sizes_are_sorted_and_relative_to_the_root(filled: Storage) -> None:
    assert filled.sizes() == {path: len(content) for path, content in FILES.items()}
    assert filled.files() == sorted(FILES)
    assert filled.files("a") == ["a/2.png", "a/b c/ü.png", "a/b/1.png"]  # not ab/x
    assert filled.child("a").files() == ["2.png", "b c/ü.png", "b/1.png"]


STARTS = ["", "a", "a/", "a/b", "a/b/", "ab/x", "z.bin", "nowhere", "nowhere/"]


@pytest.mark.parametrize("start", STARTS)
def test_a_walk_finds_the_files_whose_path_begins_so(filled: Storage, start: str) -> None:
    filled.write(".hidden/file", b"")
    filled.write("a/.unfinished", b"")
    assert dict(filled.walk(start)) == {path: len(FILES[path]) for path in FILES if path.startswith(start)}


@pytest.mark.s3
def test_a_walk_goes_through_all_pages_of_s3(moto: Place) -> None:
    storage = Storage(f"{moto.root}/walk", moto.options)
    names = [f"shard=a/{number}" for number in range(10)] + [f"shard=b/{number}" for number in range(1010)]
    s3fs.S3FileSystem(**moto.options).pipe({f"line/walk/{name}": b"12" for name in (*names, "_SUCCESS")})
    Storage(f"{moto.root}/walks", moto.options).write("beside/it", b"")
    for start, expected in (("shard=", names), ("shard=b/", names[10:]), ("", [*names, "_SUCCESS"]), ("c", [])):
        assert dict(storage.walk(start)) == dict.fromkeys(expected, 2)


def test_folders_are_the_names_directly_below(filled: Storage) -> None:
    assert filled.folders() == ["a", "ab"]
    assert filled.folders("a") == ["b", "b c"]
    assert filled.folders("a/b") == []


def test_listing_what_is_no_folder_is_empty(filled: Storage) -> None:
    for place in ("nowhere", "z.bin", "a/nowhere/deeper"):
        assert filled.files(place) == []
        assert filled.folders(place) == []
    assert filled.child("z.bin").files() == []


def test_names_that_start_with_a_dot_are_hidden(filled: Storage) -> None:
    filled.write(".hidden/file", b"")
    filled.write("a/.unfinished", b"")
    assert filled.files() == sorted(FILES)
    assert filled.folders() == ["a", "ab"]


def test_what_is_not_there_has_an_error_of_its_own(filled: Storage) -> None:
    for call in (filled.read, filled.open):
        with pytest.raises(MissingFileError, match="nowhere does not exist"):
            call("nowhere")


def test_existence_of_files_folders_and_nothing(filled: Storage) -> None:
    assert filled.exists()
    assert filled.exists("a/b")
    assert filled.exists("z.bin")
    assert not filled.exists("nowhere")
    assert filled.is_file("z.bin")
    assert not filled.is_file("a")
    assert not filled.is_file("nowhere")


@pytest.mark.parametrize(("start", "end"), [(0, 3), (3, 10), (2, None), (None, 4), (9, 99), (10, 99), (4, 4)])
def test_a_range_is_a_slice(storage: Storage, start: int | None, end: int | None) -> None:
    content = bytes(range(10))
    storage.write("file", content)
    assert storage.read("file", start, end) == content[start:end]


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "/etc/passwd", "a/..", ".."])
def test_a_path_that_leaves_the_root_is_refused(filled: Storage, path: str) -> None:
    calls = (
        lambda: filled.read(path),
        lambda: filled.write(path, b""),
        lambda: filled.remove(path),
        lambda: filled.files(path),
        lambda: filled.folders(path),
        lambda: filled.is_file(path),
        lambda: filled.exists(path),
        lambda: filled.size(path),
        lambda: filled.open(path),
        lambda: filled.child(path),
    )
    for call in calls:
        with pytest.raises(StorageError, match="leaves"):
            call()


def test_a_name_with_two_dots_inside_is_no_escape(storage: Storage) -> None:
    storage.write("a..b/..c", b"1")
    assert storage.read("a..b/..c") == b"1"


def test_a_missing_file_is_named_by_its_uri(filled: Storage) -> None:
    for call in (filled.read, filled.size, filled.open):
        with pytest.raises(StorageError, match=r"does not exist") as caught:
            call("a/nowhere.png")
        assert f"{filled.uri}/a/nowhere.png" in str(caught.value)


def test_what_may_be_missing_is_read_or_none(filled: Storage) -> None:
    assert filled.read_if_there("a/2.png") == b"two"
    assert filled.read_if_there("a/b/1.png") == b""
    for path in ("a/nowhere.png", "nowhere/file", "a", "z.bin/below-a-file"):
        assert filled.read_if_there(path) is None
    with pytest.raises(StorageError, match="leaves"):
        filled.read_if_there("../outside")


def test_remove_may_be_repeated(filled: Storage) -> None:
    filled.remove("a/2.png")
    filled.remove("a/2.png")
    filled.remove("never/was")
    assert filled.files() == sorted(set(FILES) - {"a/2.png"})


def test_a_child_is_the_same_tree_with_the_same_options() -> None:
    root = Storage("s3://bucket/root/", {"key": "k", "secret": "s"})
    child = root.child("a/b")
    assert (child.uri, child.options) == ("s3://bucket/root/a/b", {"key": "k", "secret": "s"})


@pytest.mark.parametrize("uri", ["nosuch://host/x", "gs://bucket/x"])
def test_a_protocol_that_nothing_opens_is_refused_by_name(uri: str) -> None:
    with pytest.raises(StorageError, match=uri):
        Storage(uri)


def test_an_option_that_the_file_system_does_not_know_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot open"):
        Storage("s3://bucket/x", {"endpont_url": "http://localhost:1"}).files()


def test_an_unreachable_server_is_a_storage_error_that_names_the_file() -> None:
    storage = Storage("http://127.0.0.1:9/data")
    with pytest.raises(StorageError, match=r"cannot reach http://127\.0\.0\.1:9/data/file"):
        storage.read("file")


def test_the_root_of_a_file_system_is_a_tree_too() -> None:
    root = Storage("memory://")
    root.write("at-root.bin", b"1")
    try:
        assert root.read("at-root.bin") == Storage("memory:///").read("at-root.bin") == b"1"
        assert "at-root.bin" in root.files()
        assert root.join("at-root.bin") == "memory://at-root.bin"
    finally:
        root.remove("at-root.bin")
    assert Storage("/").join("etc") == "/etc"
    assert "etc" in Storage("/").folders()


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("x.tar", ".", "x.tar"),
        ("/x.tar", "/", "x.tar"),
        ("/a/b/x.tar", "/a/b", "x.tar"),
        ("a/x.tar/", "a", "x.tar"),
        ("s3://bucket/x.tar", "s3://bucket", "x.tar"),
        ("memory://x.tar", "memory://", "x.tar"),
        ("file:///x.tar", "file:///", "x.tar"),
    ],
)
def test_a_uri_splits_into_folder_and_name(uri: str, folder: str, name: str) -> None:
    assert split_uri(uri) == (folder, name)


@settings(deadline=None)
@given(parts=st.lists(st.text("ab. ü-", min_size=1, max_size=6), min_size=1, max_size=4))
def test_splitting_undoes_joining(parts: list[str]) -> None:
    storage = Storage("memory://root")
    folder, name = split_uri(storage.join("/".join(parts)))
    assert name == parts[-1]
    assert folder == storage.join("/".join(parts[:-1]))


# -- local trees


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The system refuses to let a file grow past `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_half_way_leaves_the_old_content(local: Storage, tmp_path: Path) -> None:
    local.write("file", b"old")
    with file_size_limit(2**20), pytest.raises(StorageError, match="cannot reach"):
        local.write("file", bytes(2**21))
    assert local.read("file") == b"old"
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["file"]


def test_content_that_cannot_be_written_leaves_the_old_content(local: Storage, tmp_path: Path) -> None:
    local.write("file", b"old")
    with pytest.raises(TypeError):
        local.write("file", "text is no bytes")  # type: ignore[arg-type]
    assert local.read("file") == b"old"
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["file"]


KILLED_WHILE_WRITING = """
import os, sys
from cflow_ray.store.storage import Storage
os.fsync = lambda _: os.kill(os.getpid(), 9)  # all bytes are written, none is known to be on the disk
Storage(sys.argv[1]).write("file", b"new")
"""


def test_a_process_killed_while_writing_leaves_the_old_content(local: Storage, tmp_path: Path) -> None:
    local.write("file", b"old")
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, local.uri]
    assert subprocess.run(command, check=False).returncode == -9
    assert len(list((tmp_path / "local").iterdir())) == 2  # the unfinished file is there
    assert local.sizes() == {"file": 3}  # and not listed
    assert local.read("file") == b"old"


def test_a_folder_in_the_way_is_a_storage_error(local: Storage) -> None:
    local.write("taken/file", b"")
    with pytest.raises(StorageError, match="taken"):
        local.write("taken", b"content")
    with pytest.raises(StorageError, match="taken/file/below"):
        local.write("taken/file/below", b"content")
    assert local.files() == ["taken/file"]


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Whoever runs the tests is no superuser meanwhile, whom permissions do not stop."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_forbidden_places_are_named(local: Storage, tmp_path: Path) -> None:
    local.write("closed/inner/file", b"secret")
    closed = tmp_path / "local" / "closed"
    closed.chmod(0)
    try:
        with ordinary_user():
            for call in (local.read, local.open, local.size, local.remove):
                with pytest.raises(StorageError, match="no access") as caught:
                    call("closed/inner/file")
                assert f"{local.uri}/closed/inner/file" in str(caught.value)
            with pytest.raises(StorageError, match="no access"):
                local.write("closed/new", b"")
            with pytest.raises(StorageError, match="no access"):
                local.files()  # an empty listing would be taken for missing data
    finally:
        closed.chmod(0o700)
    assert local.files() == ["closed/inner/file"]


def test_linked_folders_and_files_belong_to_the_tree(local: Storage, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "train").mkdir(parents=True)
    (elsewhere / "train" / "0.png").write_bytes(b"123")
    local.write("own/0.png", b"1")
    root = tmp_path / "local"
    (root / "screw").symlink_to(elsewhere)
    (root / "own" / "1.png").symlink_to(elsewhere / "train" / "0.png")
    assert local.sizes() == {"own/0.png": 1, "own/1.png": 3, "screw/train/0.png": 3}
    assert local.folders() == ["own", "screw"]


def test_links_that_lead_in_a_circle_end(local: Storage, tmp_path: Path) -> None:
    local.write("a/file", b"1")
    local.write("b/file", b"2")
    root = tmp_path / "local"
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "across").symlink_to(root / "b")
    (root / "b" / "back").symlink_to(root / "a")
    assert local.files() == ["a/across/file", "a/file", "b/back/file", "b/file"]


def test_a_link_to_nothing_is_listed_and_named_when_read(local: Storage, tmp_path: Path) -> None:
    local.write("file", b"1")
    (tmp_path / "local" / "lost.png").symlink_to(tmp_path / "nowhere")
    assert local.sizes() == {"file": 1, "lost.png": 0}
    with pytest.raises(StorageError, match=r"lost\.png does not exist"):
        local.read("lost.png")


def test_a_home_folder_and_a_file_uri_are_local(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    assert Storage(f"file://{tmp_path}").read("x") == b"1"
    assert Storage("~").root == str(Path.home())
