"""The plan of a scoring job: fixed once, found again by the same settings, and every record in exactly one chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cflow_ray.config import DetectorConfig, ReadConfig, ScoreConfig
from cflow_ray.data.archives import Record, Shard, read_index, write_shards
from cflow_ray.errors import CflowRayError, CheckpointError, ConfigError, DataError, RecordError
from cflow_ray.score.plan import (
    FORMAT_VERSION,
    Plan,
    PlannedCheckpoint,
    category_expression,
    plan_job,
    read_plan,
    read_planned_index,
)
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.tars import tar_of
from tests.versions import add_untried_version

KEYS = [f"{category}/test/good/{number:03}.png" for category in ("cable", "screw") for number in range(7)]


def add_version(registry: Registry, category: str, input_size: int = 64) -> str:
    return add_untried_version(registry, category, input_size=input_size, target_fpr=0.125, scores=(0.5,))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two categories, each with a promoted first and a newer second version."""
    made = Registry.create(Storage(str(tmp_path / "registry")))
    for category, side in (("cable", 64), ("screw", 128)):
        made.promote(category, add_version(made, category, side))
        add_version(made, category, 32)
    return made


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "output"))


@pytest.fixture
def archive(tmp_path: Path) -> Storage:
    """Three shards of five, five and four records."""
    storage = Storage(str(tmp_path / "archive"))
    write_shards([(key, bytes(2000)) for key in KEYS], storage, "test", 12_500)
    assert len(storage.files()) == 6
    return storage


@pytest.fixture
def config(registry: Registry, output: Storage, archive: Storage) -> ScoreConfig:
    return ScoreConfig(inputs=(archive.uri,), registry=registry.storage.uri, output=output.uri, chunk_records=3)


def changed(config: ScoreConfig, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(config.model_dump() | changes)


def make_plan(**fields: Any) -> Plan:
    """A plan that no job stands behind."""
    checkpoint = PlannedCheckpoint(version="v1-abcdef", input=DetectorConfig(input_size=64).input, target_fpr=0.05)
    defaults: dict[str, Any] = {
        "inputs": ("a.tar",),
        "registry": "r",
        "category": None,
        "category_pattern": "{category}/",
        "maps": "none",
        "target_fpr": None,
        "chunk_records": 64,
        "checkpoints": {"cable": checkpoint, "screw": checkpoint},
        "shards": (),
    }
    return Plan(**(defaults | fields))


# -- planned once


def test_a_plan_fixes_shards_records_and_checkpoints(config: ScoreConfig, registry: Registry, output: Storage) -> None:
    plan = plan_job(config, output)
    assert [shard.records for shard in plan.shards] == [5, 5, 4]
    assert plan.checkpoints == {
        category: PlannedCheckpoint(
            version=registry.best(category), input=DetectorConfig(input_size=side).input, target_fpr=0.125
        )
        for category, side in (("cable", 64), ("screw", 128))
    }


def test_the_same_settings_find_the_same_plan(config: ScoreConfig, output: Storage) -> None:
    plan = plan_job(config, output)
    written = {path: output.read(path) for path in output.files()}
    assert read_plan(output) == plan
    assert plan_job(config, output) == plan
    assert {path: output.read(path) for path in output.files()} == written


def test_a_rerun_keeps_to_what_was_planned_whatever_happened_since(
    config: ScoreConfig, registry: Registry, archive: Storage, output: Storage
) -> None:
    plan = plan_job(config, output)
    registry.promote("screw", "v2")
    write_shards([("cable/new.png", b"1")], archive, "more", 10_000)
    assert plan_job(config, output) == plan


def test_the_planned_index_is_the_index_of_the_shard(config: ScoreConfig, output: Storage) -> None:
    plan = plan_job(config, output)
    for planned in plan.shards:
        assert read_planned_index(output, planned.id) == read_index(planned.shard, {}, ReadConfig())
    keys = [member.key for planned in plan.shards for member in read_planned_index(output, planned.id).members]
    assert keys == KEYS


def test_the_plan_is_written_after_its_indexes(config: ScoreConfig, output: Storage) -> None:
    last = f"_index/{plan_job(config, output.child('elsewhere')).shards[-1].id}.json"

    class FullDisk(Storage):
        def write(self, path: str, content: bytes) -> None:
            if path == last:
                raise OSError("no space left")
            super().write(path, content)

    with pytest.raises(OSError, match="no space"):
        plan_job(config, FullDisk(output.uri))
    assert not output.is_file("_plan.json")
    assert len(plan_job(config, output).shards) == 3


# -- another job


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", ("/other.tar",)),
        ("registry", "/elsewhere"),
        ("category", "screw"),
        ("category_pattern", "x/{category}/"),
        ("maps", "all"),
        ("target_fpr", 0.5),
        ("category_field", "part"),
        ("max_pixels", 1000),
    ],
)
def test_an_output_of_another_job_is_refused_by_what_differs(
    config: ScoreConfig, output: Storage, name: str, value: Any
) -> None:
    plan_job(config, output)
    before = output.read("_plan.json")
    with pytest.raises(ConfigError, match=rf"holds a job with {name} .* not .*give another --output"):
        plan_job(changed(config, **{name: value}), output)
    assert output.read("_plan.json") == before


def test_another_version_than_the_planned_one_is_refused(config: ScoreConfig, output: Storage) -> None:
    plan_job(config, output)
    assert plan_job(changed(config, checkpoints={"screw": "v1"}), output)
    for checkpoints in ({"screw": "v2"}, {"screw": "v"}, {"screw": "v10"}, {"zipper": "v1"}):
        with pytest.raises(ConfigError, match="holds a job with checkpoint"):
            plan_job(changed(config, checkpoints=checkpoints), output)


@pytest.mark.parametrize("name", ["chunk_records", "batch_size"])
def test_how_the_work_is_cut_may_change_but_the_chunks_stay(config: ScoreConfig, output: Storage, name: str) -> None:
    plan = plan_job(config, output)
    assert plan_job(changed(config, **{name: 1}), output).chunk_records == plan.chunk_records == 3


# -- checkpoints


def test_pinned_versions_replace_the_best(config: ScoreConfig, registry: Registry, output: Storage) -> None:
    plan = plan_job(changed(config, checkpoints={"screw": "v2"}), output)
    assert plan.checkpoints["screw"].version == registry.versions("screw")[1] != registry.best("screw")
    assert plan.checkpoints["screw"].input.size == (32, 32)
    assert plan.checkpoints["cable"].version == registry.best("cable")


def test_a_version_that_was_never_promoted_can_be_pinned(
    config: ScoreConfig, registry: Registry, output: Storage
) -> None:
    version = add_version(registry, "zipper")
    assert "zipper" not in plan_job(config, output.child("one")).checkpoints
    plan = plan_job(changed(config, checkpoints={"zipper": "v1"}), output.child("two"))
    assert plan.checkpoints["zipper"].version == version


def test_a_target_replaces_those_of_the_checkpoints(config: ScoreConfig, output: Storage) -> None:
    plan = plan_job(changed(config, target_fpr=0.25), output)
    assert {checkpoint.target_fpr for checkpoint in plan.checkpoints.values()} == {0.25}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": {"screw": "v7"}}, r"no version 'v7' of 'screw'; there are v1-.*, v2-"),
        ({"category": "zippr"}, r"no checkpoint for 'zippr'; the registry holds cable, screw"),
        ({"registry": "/nowhere"}, r"/nowhere is no registry"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(
    config: ScoreConfig, output: Storage, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        plan_job(changed(config, **changes), output)
    assert output.files() == []


def test_a_registry_without_checkpoints_says_what_to_run(config: ScoreConfig, output: Storage, tmp_path: Path) -> None:
    empty = Registry.create(Storage(str(tmp_path / "empty")))
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\. Run: cflow-ray fit"):
        plan_job(changed(config, registry=empty.storage.uri), output)


def test_a_missing_input_is_named(config: ScoreConfig, output: Storage) -> None:
    with pytest.raises(DataError, match="/nowhere does not exist"):
        plan_job(changed(config, inputs=("/nowhere",)), output)
    assert not output.is_file("_plan.json")


# -- damage


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"format_version": 2}'])
def test_a_damaged_plan_is_named(config: ScoreConfig, output: Storage, content: bytes) -> None:
    output.write("_plan.json", content)
    for call in (lambda: read_plan(output), lambda: plan_job(config, output)):
        with pytest.raises(CflowRayError, match=r"_plan\.json.*give another --output"):
            call()


def test_a_plan_of_another_format_is_refused_by_its_version(config: ScoreConfig, output: Storage) -> None:
    plan_job(config, output)
    content = json.loads(output.read("_plan.json"))
    output.write("_plan.json", json.dumps(content | {"format_version": FORMAT_VERSION + 1}).encode())
    with pytest.raises(DataError, match=f"format version {FORMAT_VERSION + 1}"):
        plan_job(config, output)


def test_a_damaged_planned_index_is_named(config: ScoreConfig, output: Storage) -> None:
    shard = plan_job(config, output).shards[0].id
    output.write(f"_index/{shard}.json", b"{}")
    with pytest.raises(DataError, match=rf"_index/{shard}\.json is damaged"):
        read_planned_index(output, shard)


def test_a_damaged_archive_has_one_record_more_that_says_so(
    config: ScoreConfig, archive: Storage, output: Storage
) -> None:
    whole = tar_of((key, bytes(1000)) for key in KEYS[:3])
    archive.write("cut.tar", whole[: 3 * 1536 - 700])
    archive.write("none.tar", b"")
    plan = plan_job(changed(config, inputs=[archive.join("cut.tar"), archive.join("none.tar")]), output)
    assert [shard.records for shard in plan.shards] == [4, 1]
    assert [read_planned_index(output, shard.id).damage is not None for shard in plan.shards] == [True, True]


def test_a_shard_is_found_by_its_id(config: ScoreConfig, output: Storage) -> None:
    plan = plan_job(config, output)
    for planned in plan.shards:
        assert plan.shard(planned.id) == planned
        assert planned.shard == Shard(planned.uri, "tar")
        assert planned.shard.id == planned.id


# -- categories


@pytest.mark.parametrize(
    ("pattern", "key", "category"),
    [
        ("{category}/", "screw/test/good/000.png", "screw"),
        ("{category}/", "screw/", "screw"),
        ("{category}", "screw/x.png", "screw"),
        ("line7_{category}_cam/", "line7_screw_cam/1.png", "screw"),
        ("line7_{category}_cam/", "line7_metal_nut_cam/1.png", "metal_nut"),
        ("line7_{category}_cam/", "line7_a_cam_cam/1.png", "a_cam"),
        ("data.v1/{category}/", "data.v1/screw/1.png", "screw"),
        ("{category}-", "metal_nut-0001.png", "metal_nut"),
        ("{category}/", "pcb 4/ü.png", "pcb 4"),
    ],
)
def test_a_pattern_finds_the_category_at_the_start_of_a_key(pattern: str, key: str, category: str) -> None:
    match = category_expression(pattern).match(key)
    assert match is not None
    assert match["category"] == category


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("{category}/", "000.png"),
        ("{category}/", "/000.png"),
        ("{category}/", ""),
        ("line7_{category}_cam/", "line8_screw_cam/1.png"),
        ("line7_{category}_cam/", "x/line7_screw_cam/1.png"),
        ("line7_{category}_cam/", "line7_a/b_cam/1.png"),  # a category is no path
        ("data.v1/{category}/", "dataXv1/screw/1.png"),  # a pattern is no regular expression
    ],
)
def test_a_key_that_does_not_fit_is_an_error_that_names_both(pattern: str, key: str) -> None:
    with pytest.raises(RecordError) as caught:
        make_plan(category_pattern=pattern).category_of(Record(key, b""))
    assert caught.value.kind == "no_category"
    assert repr(key) in str(caught.value)
    assert repr(pattern) in str(caught.value)


def test_the_category_of_a_key_must_be_planned() -> None:
    plan = make_plan()
    assert plan.category_of(Record("screw/1.png", b"")) == "screw"
    with pytest.raises(RecordError, match="no checkpoint for category 'zipper'; there are cable, screw"):
        plan.category_of(Record("zipper/1.png", b""))


def test_a_field_may_name_the_category() -> None:
    plan = make_plan(category_field="part")
    assert plan.category_of(Record("1.png", b"", {"part": "screw"})) == "screw"
    with pytest.raises(RecordError, match="no field 'part' names the category; its fields are line"):
        plan.category_of(Record("screw/1.png", b"", {"line": 7}))


def test_a_fixed_category_is_that_of_every_key() -> None:
    plan = make_plan(category="cable")
    assert {plan.category_of(Record(key, b"")) for key in ("screw/1.png", "1.png", "")} == {"cable"}


def test_the_default_pattern_finds_the_category_of_packed_records(config: ScoreConfig, output: Storage) -> None:
    plan = plan_job(config, output)
    for shard in plan.shards:
        for member in read_planned_index(output, shard.id).members:
            assert plan.category_of(Record(member.key, b"")) == member.key.partition("/")[0]


def test_the_categories_of_a_tar_made_with_a_leading_dot_are_found(
    config: ScoreConfig, archive: Storage, output: Storage
) -> None:
    archive.write("dot.tar", tar_of([("./screw/1.png", b"")]))
    plan = plan_job(changed(config, inputs=[archive.join("dot.tar")]), output)
    (member,) = read_planned_index(output, plan.shards[0].id).members
    assert plan.category_of(Record(member.key, b"")) == "screw"
