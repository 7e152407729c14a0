"""The origin of a score table is what its job's plan says, read without the job."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from cflow_ray.config import DetectorConfig
from cflow_ray.errors import DataError
from cflow_ray.score.plan import Plan, PlannedCheckpoint
from cflow_ray.store.origin import PLAN, Origin, read_origin
from cflow_ray.store.storage import Storage


def plan(**fields: Any) -> Plan:
    planned = PlannedCheckpoint(version="v1-abcdef", input=DetectorConfig(input_size=64).input, target_fpr=0.05)
    return Plan(
        **{
            "created": datetime(2026, 11, 23, 1, 30, tzinfo=UTC),
            "inputs": ("a.tar",),
            "registry": "s3://line/registry",
            "category": None,
            "category_pattern": "{category}/",
            "maps": "none",
            "target_fpr": None,
            "chunk_records": 64,
            "checkpoints": {"screw": planned},
            "shards": (),
        }
        | fields
    )


@pytest.mark.parametrize(
    "created",
    [
        datetime(2026, 11, 23, 0, 0, tzinfo=UTC),
        datetime(2026, 11, 23, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 11, 24, 1, 30, tzinfo=timezone(timedelta(hours=2))),
        datetime(2026, 11, 22, 23, 30, tzinfo=timezone(timedelta(hours=-2))),
    ],
)
def test_the_origin_is_the_plans(storage: Storage, created: datetime) -> None:
    storage.write(PLAN, plan(created=created).model_dump_json(indent=2).encode())
    assert read_origin(storage) == Origin(date(2026, 11, 23), "s3://line/registry", {"screw": "v1-abcdef"})


def test_there_may_be_none(storage: Storage) -> None:
    assert read_origin(storage) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"format_version": 1}'])
def test_a_damaged_plan_is_named(storage: Storage, content: bytes) -> None:
    storage.write(PLAN, content)
    with pytest.raises(DataError, match=r"_plan\.json is damaged"):
        read_origin(storage)


@pytest.mark.parametrize(
    "change", [{"created": "yesterday"}, {"created": None}, {"checkpoints": []}, {"checkpoints": {"screw": {}}}]
)
def test_a_plan_that_says_something_else_is_damaged(storage: Storage, change: dict[str, Any]) -> None:
    storage.write(PLAN, json.dumps(json.loads(plan().model_dump_json()) | change).encode())
    with pytest.raises(DataError, match=r"_plan\.json is damaged"):
        read_origin(storage)


def test_the_origin_is_alike_in_every_format(storage: Storage) -> None:
    storage.write(PLAN, plan(format_version=1).model_dump_json().encode())
    assert read_origin(storage) == Origin(date(2026, 11, 23), "s3://line/registry", {"screw": "v1-abcdef"})
