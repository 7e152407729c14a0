"""The plan of a pack: every image in one shard, as long as it says, the same for the same listing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.config import PackConfig
from cflow_ray.data.archives import write_shards
from cflow_ray.data.pack_plan import PackPlan, PlannedRecord, PlannedShard, divide, plan_pack
from cflow_ray.errors import DataError, StorageError
from cflow_ray.store.storage import Storage

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)


def write(storage: Storage, *keys: str) -> Storage:
    for key in keys:
        storage.write(key, key.encode())
    return storage


def plan_of(*inputs: str, **more: object) -> PackPlan:
    return plan_pack(PackConfig.model_validate({"inputs": inputs, "output": "/nowhere"} | more))


def keys_of(plan: PackPlan) -> list[str]:
    return [record.key for shard in plan.shards for record in shard.records]


@settings(max_examples=60, deadline=None)
@given(sizes=st.dictionaries(KEYS, st.integers(0, 3000), max_size=30), shard_bytes=st.integers(4096, 20_000))
def test_every_record_is_in_one_shard_and_each_shard_as_long_as_planned(
    sizes: dict[str, int], shard_bytes: int
) -> None:
    records = [PlannedRecord(key, size, 0) for key, size in sizes.items()]
    shards = list(divide(records, "test", shard_bytes))
    assert [record for shard in shards for record in shard.records] == records
    assert [PlannedShard.from_json(shard.to_json()) for shard in shards] == shards
    output = Storage("memory://plan")
    for path in output.files():
        output.remove(path)
    written = write_shards(((key, bytes(size)) for key, size in sizes.items()), output, "test", shard_bytes)
    assert [(shard.name, shard.size) for shard in shards] == [(name, output.size(name)) for name in written]


def test_a_header_of_a_size_that_needs_more_room_is_planned_too() -> None:
    (shard,) = divide([PlannedRecord("huge.png", 9 * 2**30, 0)], "test", 10**6)
    assert shard.size == 9 * 2**30 + 3 * 512 + 1024  # tar's own field holds 8 GiB; above, two more blocks say the size


def test_inputs_are_folders_globs_files_and_manifests_and_each_image_counts_once(storage: Storage) -> None:
    write(storage, "night/a/0.png", "night/a/1.jpg", "night/b/2.png", "night/b/notes.txt", "other/3.png")
    storage.write("list.csv", b"path,shift\nnight/b/2.png,3\nother/3.png,1\nother/3.png,2\n")
    night = storage.join("night")
    assert keys_of(plan_of(night)) == ["a/0.png", "a/1.jpg", "b/2.png"]
    assert keys_of(plan_of(f"{night}/*/*.jpg")) == ["a/1.jpg"]
    assert keys_of(plan_of(f"{night}/a/1.jpg", f"{night}/a/0.png")) == ["1.jpg", "0.png"]
    assert keys_of(plan_of(night, night)) == ["a/0.png", "a/1.jpg", "b/2.png"]
    plan = plan_of(storage.join("list.csv"))
    assert keys_of(plan) == ["night/b/2.png", "other/3.png"]
    assert [record.size for shard in plan.shards for record in shard.records] == [13, 11]


@pytest.mark.parametrize(
    ("more", "name"),
    [({}, "images-000000.tar"), ({"name": "night"}, "night-000000.tar"), ({"split": "all"}, "images-000000.tar")],
)
def test_shards_are_called_as_asked(storage: Storage, more: dict[str, str], name: str) -> None:
    write(storage, "0.png")
    assert [shard.name for shard in plan_of(storage.uri, **more).shards] == [name]


def test_the_digest_changes_with_names_and_sizes_alone(storage: Storage) -> None:
    write(storage, "0.png", "1.png")
    before = plan_of(storage.uri).digest
    storage.write("1.png", b"ABCDE")
    assert plan_of(storage.uri).digest == before
    storage.write("1.png", b"ABCDEF")
    other = plan_of(storage.uri).digest
    write(storage, "2.png")
    assert len({before, other, plan_of(storage.uri).digest}) == 3


def test_what_cannot_be_packed_is_named(storage: Storage) -> None:
    write(storage, "a/0.png", "b/0.png", "c/old.tar", "c/1.png")
    with pytest.raises(DataError, match=r"'0\.png'"):
        plan_of(storage.join("a"), storage.join("b"))
    with pytest.raises(DataError, match=r"c/old\.tar is an archive"):
        plan_of(storage.join("c"))
    storage.write("gone.txt", b"a/0.png\na/gone.png\n")
    with pytest.raises(StorageError, match=r"a/gone\.png"):
        plan_of(storage.join("gone.txt"))
    with pytest.raises(DataError, match="does not exist"):
        plan_of(storage.join("nothing"))


def test_a_name_that_is_no_key_is_told(tmp_path: Path) -> None:
    try:
        (tmp_path / "\udcff.png").write_bytes(b"1")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match="UTF-8"):
        plan_of(str(tmp_path))


def test_a_data_set_is_packed_by_category_and_path(storage: Storage) -> None:
    paths = ["b/train/good/0.png", "b/test/good/0.png", "a/test/bad/1.png", "a/test/good/0.png"]
    write(storage, *paths)
    config = {"data": storage.uri, "output": "/nowhere"}
    plan = plan_pack(PackConfig.model_validate(config))
    assert keys_of(plan) == ["a/test/bad/1.png", "a/test/good/0.png", "b/test/good/0.png"]
    assert [shard.name for shard in plan.shards] == ["test-000000.tar"]
    everything = plan_pack(PackConfig.model_validate(config | {"split": "all"}))
    assert [shard.name for shard in everything.shards] == ["all-000000.tar"]
    assert sorted(keys_of(everything)) == sorted(paths)


def test_an_image_of_a_table_that_is_not_there_is_named(storage: Storage) -> None:
    storage.write("table.csv", b"image,category,split\nhere.png,screw,test\ngone.png,screw,test\n")
    write(storage, "here.png")
    config = PackConfig(data=storage.join("table.csv"), layout="table", output="/nowhere")
    with pytest.raises(StorageError, match=r"gone\.png"):
        plan_pack(config)
