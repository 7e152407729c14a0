"""What a row of the score table says of its record, whoever scored it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cflow_ray.data.archives import Record
from cflow_ray.errors import CflowRayError, RecordError
from cflow_ray.store.results import UNREADABLE

Row = dict[str, Any]


def row_of(record: Record) -> Row:
    """The columns that a record has before anything is known of its image."""
    return {
        "key": record.key,
        "category": None,
        "fields": json.dumps(dict(record.fields), default=str) if record.fields else None,
        "error": None,
        "error_kind": None,
    }


def content_of(record: Record) -> bytes:
    """The bytes of a record; raises the error that it has instead."""
    if isinstance(record.content, CflowRayError):
        raise record.content
    return record.content


def error_columns(error: CflowRayError) -> Row:
    """The columns that say why a record has no score."""
    return {"error": str(error), "error_kind": kind_of(error)}


def kind_of(error: CflowRayError) -> str:
    """The record's own fault by its kind; all else is the store's or the server's."""
    return error.kind if isinstance(error, RecordError) else UNREADABLE


def count_rows(rows: Sequence[Row]) -> Row:
    """What a summary adds up of a chunk's rows."""
    kinds = Counter(row["error_kind"] for row in rows if row.get("error"))
    return {
        "rows": len(rows),
        "errors_by_kind": json.dumps(kinds),
        "anomalies": sum(bool(row.get("is_anomaly")) for row in rows),
    }


def image_id(shard: str, record: Row, number: int) -> str:
    """The shard and the key; a key that may not be unique in its shard with the record's number."""
    unique = record["key"] and record["error_kind"] != "duplicate_key"
    return f"{shard}/{record['key']}" if unique else f"{shard}/{record['key']}#{number}"
