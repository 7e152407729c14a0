"""Where a score table comes from, as the plan beside it tells: when, from which registry, by which versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from cflow_ray.errors import DataError
from cflow_ray.store.storage import Storage

PLAN = "_plan.json"
"""Name of a job's plan below its results; all of it is written and read by the job."""


@dataclass(frozen=True)
class Origin:
    """What a reader of a score table needs of the job that made it."""

    day: date
    """In UTC, on which the job was planned."""
    registry: str
    """Or, where a server scored, its address."""
    versions: Mapping[str, str]
    """Full names by category; a row with `error` does not name its own."""

    @property
    def is_of_server(self) -> bool:
        """Whether a server scored."""
        return self.registry.startswith(("http://", "https://"))


def read_origin(results: Storage) -> Origin | None:
    """The origin of a score table, None where no plan lies beside it; raises DataError where that is damaged.

    Every format of the plan has it alike, so tables of earlier releases are read too.
    """
    written = results.read_if_there(PLAN)
    if written is None:
        return None
    try:
        return _origin(json.loads(written))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{results.join(PLAN)} is damaged: {error!r}. Score anew into another --output.") from error


def _origin(plan: Mapping[str, Any]) -> Origin:
    versions = {category: checkpoint["version"] for category, checkpoint in plan["checkpoints"].items()}
    return Origin(datetime.fromisoformat(plan["created"]).astimezone(UTC).date(), plan["registry"], versions)
