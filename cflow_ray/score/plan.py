"""The plan of a scoring job, written once beside its output: shards, chunks and the checkpoints that score them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from pydantic import AwareDatetime, Field

from cflow_ray.config import AskConfig, InputConfig, MapFormat, Maps, Model, ReadConfig, ScoreConfig
from cflow_ray.data.archives import Record, Shard, ShardIndex, find_shards, is_streamed, read_index
from cflow_ray.data.archives.shards import Kind
from cflow_ray.errors import CheckpointError, ConfigError, DataError, RecordError
from cflow_ray.store.ahead import REQUESTS, computed_ahead
from cflow_ray.store.origin import PLAN
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage

FORMAT_VERSION = 2
_SETTINGS = (
    "inputs",
    "registry",
    "category",
    "category_pattern",
    "maps",
    "map_format",
    "map_size",
    "target_fpr",
    *ReadConfig.model_fields,
)
"""What a rerun must have as the job had it."""


class PlannedCheckpoint(Model):
    """The version that scores a category in this job, and what its input must look like."""

    version: str
    input: InputConfig | None
    """None where a server decodes."""
    target_fpr: float


class PlannedShard(Model):
    """One archive; its index is kept below the output, so that every worker sees the same records."""

    id: str
    uri: str
    kind: Kind
    group: int | None = None
    records: int | None
    """None where only reading to the end tells."""

    @property
    def shard(self) -> Shard:
        """The archive to read."""
        return Shard(self.uri, self.kind, self.group)


@dataclass(frozen=True)
class Span:
    """What one task reads: chunks of one shard by the numbers of their first records."""

    shard: str
    firsts: tuple[int, ...]
    """To read; of a shard whose end is not known, those not to read."""
    to_end: bool = False
    """The shard is read to an end that is not known."""

    def to_json(self) -> str:
        """As it travels to its task."""
        return json.dumps([self.shard, self.firsts, self.to_end])

    @classmethod
    def from_json(cls, text: str) -> Span:
        """What `to_json` made."""
        shard, firsts, to_end = json.loads(text)
        return cls(shard, tuple(firsts), to_end)


class Plan(ReadConfig):
    """All that a job fixed when it started; a rerun goes on with it."""

    format_version: int = FORMAT_VERSION
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Of this plan alone: two jobs that start on one output at once find out by it."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    inputs: tuple[str, ...]
    registry: str
    category: str | None
    category_pattern: str
    maps: Maps
    map_format: MapFormat = "png16"
    map_size: int | None = None
    target_fpr: float | None
    chunk_records: int
    checkpoints: dict[str, PlannedCheckpoint]
    shards: tuple[PlannedShard, ...]

    @cached_property
    def by_id(self) -> dict[str, PlannedShard]:
        """The shards by their ids."""
        return {shard.id: shard for shard in self.shards}

    def shard(self, shard_id: str) -> PlannedShard:
        """The shard of an id."""
        return self.by_id[shard_id]

    def count(self, records: int | None) -> int:
        """Chunks of so many records."""
        return -(-(records or 0) // self.chunk_records)

    def category_of(self, record: Record) -> str:
        """The category of a record; raises RecordError where it does not tell or no checkpoint is planned for it."""
        category = self.category or self._said(record)
        if category not in self.checkpoints:
            known = ", ".join(self.checkpoints) or "none"
            raise RecordError(f"no checkpoint for category {category!r}; there are {known}", "unknown_category")
        return category

    def _said(self, record: Record) -> str:
        if self.category_field is not None:
            value = record.fields.get(self.category_field)
            if value is None:
                known = ", ".join(map(str, record.fields)) or "none"
                raise RecordError(
                    f"no field {self.category_field!r} names the category; its fields are {known}", "no_category"
                )
            return str(value)
        match = category_expression(self.category_pattern).match(record.key)
        if match is None:
            raise RecordError(
                f"the key {record.key!r} does not fit the category pattern {self.category_pattern!r}", "no_category"
            )
        return match["category"]


def category_expression(pattern: str) -> re.Pattern[str]:
    """A category pattern as a regular expression for the start of a key; {category} stands for one path part or less."""
    before, after = (re.escape(part) for part in pattern.split("{category}"))
    return re.compile(f"{before}(?P<category>[^/]+?){after}" if after else f"{before}(?P<category>[^/]+)")


PlannedCheckpoints = Mapping[str, PlannedCheckpoint]
"""By category."""


def plan_job(config: ScoreConfig, output: Storage) -> Plan:
    """The plan of an output: the one that is there, if it is of the same job, or a new one, written with its indexes.

    Raises ConfigError where the output holds another job, DataError or CheckpointError where inputs or checkpoints
    are missing.
    """
    plan = plan_with(config, output, lambda: _planned_checkpoints(config))
    _refuse_other_versions(plan, config.checkpoints, output)
    return plan


def plan_with(config: ScoreConfig | AskConfig, output: Storage, checkpoints: Callable[[], PlannedCheckpoints]) -> Plan:
    """The same with checkpoints from elsewhere, which are asked for where there is no plan yet."""
    if not output.is_file(PLAN):
        output.write_new(PLAN, _new_plan(config, output, checkpoints()).model_dump_json(indent=2).encode())
    plan = read_plan(output)  # another job may have been the first to write one
    _refuse_other_job(plan, config, output)
    return plan


def _new_plan(config: ScoreConfig | AskConfig, output: Storage, checkpoints: PlannedCheckpoints) -> Plan:
    found = find_shards(config.inputs, config.storage_options, config)

    def planned(shard: Shard, index: ShardIndex | None) -> PlannedShard:
        records = None
        if not is_streamed(shard):
            index = index or read_index(shard, config.storage_options, config)
            output.write(_index_path(shard.id), index.to_json())
            records = len(index)
        return PlannedShard(id=shard.id, uri=shard.uri, kind=shard.kind, group=shard.group, records=records)

    shards = tuple(computed_ahead(lambda one: planned(*one), found, REQUESTS))
    settings = {name: getattr(config, name) for name in (*_SETTINGS, "chunk_records")}
    return Plan(checkpoints=dict(checkpoints), shards=shards, **settings)


def read_plan(output: Storage) -> Plan:
    """The plan of an output; raises DataError where it is damaged or of another format."""
    try:
        content = json.loads(output.read(PLAN))
        if content.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{output.join(PLAN)} has format version {content.get('format_version')!r}; this release reads "
                f"{FORMAT_VERSION}. Give another --output."
            )
        return Plan.model_validate(content)
    except (ValueError, AttributeError) as error:
        raise DataError(f"{output.join(PLAN)} is damaged; give another --output.") from error


def read_own_plan(output: Storage, plan_id: str) -> Plan:
    """The plan that a job began with; raises ConfigError where another one lies in its place."""
    plan = read_plan(output)
    if plan.id != plan_id:
        raise ConfigError("another job wrote its plan over this one's; run the command again to go on with that plan.")
    return plan


def read_planned_index(output: Storage, shard_id: str) -> ShardIndex:
    """The records of a shard as they were when the job was planned."""
    index = ShardIndex.from_json(output.read(_index_path(shard_id)))
    if index is None:
        raise DataError(f"{output.join(_index_path(shard_id))} is damaged; give another --output.")
    return index


def write_length(output: Storage, shard_id: str, records: int) -> None:
    """Note how many records a streamed shard turned out to have."""
    output.write(_length_path(shard_id), json.dumps({"records": records}).encode())


def read_length(output: Storage, shard_id: str) -> int | None:
    """How many records a streamed shard has; None until it was read to its end."""
    content = output.read_if_there(_length_path(shard_id))
    return None if content is None else int(json.loads(content)["records"])


def _length_path(shard_id: str) -> str:
    return f"_index/{shard_id}.length.json"


def _index_path(shard_id: str) -> str:
    return f"_index/{shard_id}.json"


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


def _refuse_other_job(plan: Plan, config: ScoreConfig | AskConfig, output: Storage) -> None:
    for name in _SETTINGS:
        was, now = getattr(plan, name), getattr(config, name)
        if was != now:
            raise ConfigError(
                f"{output.uri} holds a job with {name} {was!r}, not {now!r}; give another --output or the same settings."
            )


def _refuse_other_versions(plan: Plan, pinned: Mapping[str, str], output: Storage) -> None:
    for category, version in pinned.items():
        planned = plan.checkpoints.get(category)
        if planned is None or not f"{planned.version}-".startswith(f"{version}-"):
            raise ConfigError(
                f"{output.uri} holds a job with checkpoint {planned and planned.version} of {category!r}, not {version!r}; "
                "give another --output."
            )
