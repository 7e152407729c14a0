"""The state of a scoring job, from its plan and the listing of its output; the rows only where they are asked for."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from rich.table import Table

from cflow_ray.config import DetectorConfig, StatusConfig
from cflow_ray.errors import DataError
from cflow_ray.score.plan import Plan, PlannedCheckpoint, PlannedShard, write_length
from cflow_ray.score.status import status, status_report
from cflow_ray.store.compaction import compact
from cflow_ray.store.results import PartName, write_part
from cflow_ray.store.storage import Storage

RECORDS = {"a-1": 10, "b-2": 4, "c-3": 0, "d-4": 5}


@pytest.fixture
def output() -> Iterator[Storage]:
    """A job of four shards in chunks of four records: 3 + 1 + 0 + 2."""
    storage = Storage(f"memory://{uuid.uuid4().hex}/scores")
    checkpoint = PlannedCheckpoint(version="v1-abcdef", input=DetectorConfig(input_size=64).input, target_fpr=0.05)
    plan = Plan(
        inputs=("/in",),
        registry="/registry",
        category=None,
        category_pattern="{category}/",
        maps="none",
        target_fpr=None,
        chunk_records=4,
        checkpoints={"cable": checkpoint, "screw": checkpoint},
        shards=tuple(PlannedShard(id=id, uri=f"/in/{id}.tar", kind="tar", records=n) for id, n in RECORDS.items()),
    )
    storage.write("_plan.json", plan.model_dump_json().encode())
    yield storage
    for path in storage.files():
        storage.remove(path)


def write(storage: Storage, shard: str, first: int, rows: list[dict[str, Any]] | None = None) -> None:
    count = min(4, RECORDS[shard] - first)
    named = [{"image_id": f"{shard}/{first + n}", "key": f"{first + n}"} for n in range(count)]
    rows = rows or [{"category": "screw", "is_anomaly": False}] * count
    write_part(storage, PartName(shard, first), [name | row for name, row in zip(named, rows, strict=True)], {})


def test_what_is_done_and_pending_is_counted_in_chunks_and_records(output: Storage) -> None:
    for shard, first in (("a-1", 8), ("b-2", 0), ("d-4", 0)):
        write(output, shard, first)
    found = status(StatusConfig(output=output.uri))
    values = json.loads(json.dumps(found.as_dict()))
    assert (values["chunks"], values["chunks_done"], values["chunks_pending"]) == (6, 3, 3)
    assert (values["records"], values["records_done"], values["shards"]) == (19, 10, 4)
    assert values["unfinished"] == {
        "a-1": {"chunks": 3, "chunks_done": 1, "records": 10, "records_done": 2},
        "d-4": {"chunks": 2, "chunks_done": 1, "records": 5, "records_done": 4},
    }
    assert values["checkpoints"] == {"cable": "v1-abcdef", "screw": "v1-abcdef"}
    assert values["created"] == json.loads(output.read("_plan.json"))["created"].replace("Z", "+00:00")
    assert values["finished"] is False
    assert values["rows"] is None


def test_a_compacted_job_is_as_done_as_before(output: Storage) -> None:
    for shard, first in (("a-1", 0), ("a-1", 4), ("b-2", 0), ("d-4", 0), ("d-4", 4)):
        write(output, shard, first)
    before = status(StatusConfig(output=output.uri))
    compact(output, 10**9)
    assert not output.is_file(PartName("a-1", 0).path)
    assert status(StatusConfig(output=output.uri)) == before
    write(output, "a-1", 8)
    output.write("_SUCCESS", b"")
    after = status(StatusConfig(output=output.uri))
    assert after.finished
    assert after.unfinished == {}
    assert after.total.chunks_done == 6


def test_no_part_is_read_unless_rows_are_asked_for(output: Storage) -> None:
    write(output, "a-1", 0)
    output.write(PartName("a-1", 0).path, b"no Parquet")
    assert status(StatusConfig(output=output.uri)).total.chunks_done == 1
    with pytest.raises(DataError, match="part-000000000"):
        status(StatusConfig(output=output.uri, rows=True))


def test_rows_are_counted_by_error_and_category(output: Storage) -> None:
    ok, anomaly = ({"category": "screw", "is_anomaly": value} for value in (False, True))
    cable = {"category": "cable", "is_anomaly": False}
    damaged, other = ({"error": "why", "error_kind": kind} for kind in ("damaged", None))
    write(output, "a-1", 0, [ok, anomaly, anomaly, damaged])
    write(output, "a-1", 8, [cable, damaged])
    write(output, "d-4", 4, [other | {"category": "cable"}])
    found = status(StatusConfig(output=output.uri, rows=True))
    assert json.loads(json.dumps(found.as_dict()))["rows"] == {
        "rows": 7,
        "failed": 3,
        "errors": {"damaged": 2, "unknown": 1},
        "anomalies": {"screw": 2, "cable": 0},
    }


def test_a_job_that_has_just_begun_has_no_rows(output: Storage) -> None:
    found = status(StatusConfig(output=output.uri, rows=True))
    assert found.rows is not None
    assert found.rows.rows == 0
    assert found.total.records_done == 0


def test_a_folder_without_a_plan_is_told(output: Storage) -> None:
    with pytest.raises(DataError, match=r"holds no scoring job.*Run: cflow-ray score"):
        status(StatusConfig(output=output.join("elsewhere")))


def test_the_report_names_shards_that_are_not_whole(output: Storage) -> None:
    write(output, "b-2", 0, [{"error": "why", "error_kind": "damaged"}] * 4)
    line, checkpoints, shards, rows, anomalies, errors = status_report(
        status(StatusConfig(output=output.uri, rows=True))
    )
    assert "not finished, 1 of 6 chunks and 4 of 19 records done, 5 chunks pending" in str(line)
    assert "screw v1-abcdef" in str(checkpoints)
    assert rows == "4 rows, 4 with error"
    assert all(isinstance(part, Table) for part in (shards, anomalies, errors))
    assert list(shards.columns[0].cells) == ["a-1", "d-4"]


def test_a_streamed_shard_is_not_whole_until_its_end_is_known(output: Storage) -> None:
    plan = json.loads(output.read("_plan.json"))
    plan["shards"] = [{"id": "a-1", "uri": "/in/a.tar.gz", "kind": "tar.gz", "records": None}]
    output.write("_plan.json", json.dumps(plan).encode())
    for first in (0, 4, 8):
        write(output, "a-1", first)
    found = status(StatusConfig(output=output.uri))
    assert (found.of_unknown_length, found.total.chunks_done, found.total.pending) == (["a-1"], 3, 0)
    assert "a-1" in found.unfinished
    write_length(output, "a-1", 10)
    found = status(StatusConfig(output=output.uri))
    assert (found.of_unknown_length, found.unfinished, found.total.records_done) == ([], {}, 10)
