"""The plan of a scoring job, written once beside its output: shards, chunks and the checkpoints that score them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field

from cflow_ray.config import InputConfig, Maps, Model, ScoreConfig
from cflow_ray.data.archive import Shard, ShardIndex, find_shards, read_index
from cflow_ray.errors import CheckpointError, ConfigError, DataError
from cflow_ray.store.registry import Registry
from cflow_ray.store.results import PartName
from cflow_ray.store.storage import Storage

FORMAT_VERSION = 1
_PLAN = "_plan.json"


class PlannedCheckpoint(Model):
    """The version that scores a category in this job, and what its input must look like."""

    version: str
    input: InputConfig
    target_fpr: float


class PlannedShard(Model):
    """One archive; its index is kept below the output, so that every worker sees the same records."""

    id: str
    uri: str
    kind: str
    records: int

    @property
    def shard(self) -> Shard:
        """The archive to read."""
        return Shard(self.uri, self.kind)


@dataclass(frozen=True)
class Chunk:
    """The unit of work and of output: successive records of one shard."""

    shard: str
    first: int
    count: int

    @property
    def part(self) -> PartName:
        """Where its rows go."""
        return PartName(self.shard, self.first)


class Plan(Model):
    """All that a job fixed when it started; a rerun goes on with it."""

    format_version: int = FORMAT_VERSION
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    inputs: tuple[str, ...]
    registry: str
    category: str | None
    category_pattern: str
    maps: Maps
    target_fpr: float | None
    chunk_records: int
    checkpoints: dict[str, PlannedCheckpoint]
    shards: tuple[PlannedShard, ...]

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk, in order of shards and records."""
        for shard in self.shards:
            for first in range(0, shard.records, self.chunk_records):
                yield Chunk(shard.id, first, min(self.chunk_records, shard.records - first))

    def shard(self, shard_id: str) -> PlannedShard:
        """The shard of an id."""
        return next(shard for shard in self.shards if shard.id == shard_id)

    def category_of(self, key: str) -> str:
        """The category of a record; raises DataError where the key does not tell or no checkpoint is planned for it."""
        category = self.category
        if category is None:
            match = category_expression(self.category_pattern).match(key)
            if match is None:
                raise DataError(f"the key {key!r} does not fit the category pattern {self.category_pattern!r}")
            category = match["category"]
        if category not in self.checkpoints:
            raise DataError(
                f"no checkpoint for category {category!r}; there are {', '.join(self.checkpoints) or 'none'}"
            )
        return category


def category_expression(pattern: str) -> re.Pattern[str]:
    """A category pattern as a regular expression for the start of a key; {category} stands for one path part or less."""
    before, after = (re.escape(part) for part in pattern.split("{category}"))
    return re.compile(f"{before}(?P<category>[^/]+?){after}" if after else f"{before}(?P<category>[^/]+)")


def plan_job(config: ScoreConfig, output: Storage) -> Plan:
    """The plan of an output: the one that is there, if it is of the same job, or a new one, written with its indexes.

    Raises ConfigError where the output holds another job, DataError or CheckpointError where inputs or checkpoints
    are missing.
    """
    if output.is_file(_PLAN):
        plan = read_plan(output)
        _refuse_other_job(plan, config, output)
        return plan
    checkpoints = _planned_checkpoints(config)
    shards = []
    for shard in find_shards(config.inputs, config.storage_options):
        index = read_index(shard, config.storage_options)
        output.write(_index_path(shard.id), index.to_json())
        shards.append(PlannedShard(id=shard.id, uri=shard.uri, kind=shard.kind, records=_record_count(index)))
    plan = Plan(
        inputs=config.inputs,
        registry=config.registry,
        category=config.category,
        category_pattern=config.category_pattern,
        maps=config.maps,
        target_fpr=config.target_fpr,
        chunk_records=config.chunk_records,
        checkpoints=checkpoints,
        shards=tuple(shards),
    )
    output.write(_PLAN, plan.model_dump_json(indent=2).encode())
    return plan


def read_plan(output: Storage) -> Plan:
    """The plan of an output; raises DataError where it is damaged or of another format."""
    try:
        content = json.loads(output.read(_PLAN))
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{output.join(_PLAN)} has format version {content.get('format_version')!r}; this release reads "
                f"{FORMAT_VERSION}. Give another --output."
            )
        return Plan.model_validate(content)
    except (ValueError, AttributeError) as error:
        raise DataError(f"{output.join(_PLAN)} is damaged; give another --output.") from error


def read_planned_index(output: Storage, shard_id: str) -> ShardIndex:
    """The records of a shard as they were when the job was planned."""
    index = ShardIndex.from_json(output.read(_index_path(shard_id)))
    if index is None:
        raise DataError(f"{output.join(_index_path(shard_id))} is damaged; give another --output.")
    return index


def _index_path(shard_id: str) -> str:
    return f"_index/{shard_id}.json"


def _record_count(index: ShardIndex) -> int:
    """Members, and one record more that says what damage hides the rest."""
    return len(index.members) + (index.damage is not None)


def _planned_checkpoints(config: ScoreConfig) -> dict[str, PlannedCheckpoint]:
    registry = Registry(Storage(config.registry, config.storage_options))
    categories = sorted({*registry.categories(), *config.checkpoints})
    if not categories:
        raise CheckpointError(f"the registry {config.registry} holds no checkpoint. Run: cflow-ray fit ...")
    if config.category is not None and config.category not in categories:
        registry.pointer(config.category)
    planned = {}
    for category in categories:
        pinned = config.checkpoints.get(category)
        version = registry.resolve(category, pinned) if pinned else registry.best(category)
        manifest = registry.manifest(category, version)
        planned[category] = PlannedCheckpoint(
            version=version,
            input=manifest.detector.input,
            target_fpr=config.target_fpr or manifest.detector.target_fpr,
        )
    return planned


def _refuse_other_job(plan: Plan, config: ScoreConfig, output: Storage) -> None:
    for name in ("inputs", "registry", "category", "category_pattern", "maps", "target_fpr"):
        was, now = getattr(plan, name), getattr(config, name)
        if was != now:
            raise ConfigError(
                f"{output.uri} holds a job with {name} {was!r}, not {now!r}; give another --output or the same settings."
            )
    for category, version in config.checkpoints.items():
        planned = plan.checkpoints.get(category)
        if planned is None or not f"{planned.version}-".startswith(f"{version}-"):
            raise ConfigError(
                f"{output.uri} holds a job with checkpoint {planned and planned.version} of {category!r}, not {version!r}; "
                "give another --output."
            )
