"""Packing images into tar shards, each by itself, so that a pack that was killed goes on with the shards that it lacks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cflow_ray.config import DataConfig, Model, PackConfig
from cflow_ray.data.archives import INDEX_SUFFIX
from cflow_ray.data.archives.tar_shards import TarBuffer
from cflow_ray.data.pack_plan import PackPlan, PlannedRecord, PlannedShard
from cflow_ray.errors import ConfigError, DataError, StorageError
from cflow_ray.store.ahead import REQUESTS, computed_ahead
from cflow_ray.store.storage import Storage

MANIFEST = "manifest.csv"
"""Beside the shards, written last: names them in order, for `score` to take as its input."""
PACK = "_pack.json"
"""Beside the shards, written first: what they are a pack of."""

_FORMAT_VERSION = 1
_SETTINGS = (*DataConfig.model_fields, "inputs", "name", "split", "shard_size")
"""What a rerun must have as the pack had it."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote."""

    output: str
    manifest: str
    shards: tuple[str, ...]
    records: int
    kept: int
    """Shards that were there from an earlier run."""


class _Begun(Model):
    """What is kept of a pack in its output."""

    format_version: int = _FORMAT_VERSION
    settings: dict[str, Any]
    records: int
    digest: str


def begin(plan: PackPlan, config: PackConfig, output: Storage) -> list[PlannedShard]:
    """The shards that the output lacks: all whose tar is not there with the planned size, or whose index is not.

    Raises ConfigError where the output holds something else than this pack, DataError where the images changed since
    it began.
    """
    settings = config.model_dump(mode="json", include=set(_SETTINGS))
    now = _Begun(settings=settings, records=plan.records, digest=plan.digest)
    there = output.sizes()
    if PACK not in there:
        if strays := [shard.name for shard in plan.shards if shard.name in there]:
            raise ConfigError(f"{output.uri} holds {strays[0]} without {PACK}; give another --output.")
        output.write_new(PACK, now.model_dump_json(indent=2).encode())
    _refuse_other_pack(_read_begun(output), now, output)  # another process may have been the first to write it
    return [s for s in plan.shards if there.get(s.name) != s.size or s.name + INDEX_SUFFIX not in there]


def write_shard(shard: PlannedShard, roots: Sequence[Storage], output: Storage) -> None:
    """Read the images of one shard, all of which are held in memory, and write its tar and then its index.

    Images are not decoded. Raises StorageError where one cannot be read or has another size than was planned.
    """
    tar = TarBuffer()
    for record, content in zip(shard.records, _contents(shard.records, roots), strict=True):
        if len(content) != record.size:
            raise StorageError(
                f"{roots[record.root].join(record.key)} has {len(content)} bytes, not {record.size} as when it was listed; "
                "pack into another --output once nothing is written there any more."
            )
        tar.add(record.key, content)
    tar.write(output, shard.name)


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards, in this process or a task; here, where a task need not import what scores."""

    roots: tuple[str, ...]
    config: PackConfig

    def write(self, shard: PlannedShard) -> int:
        """Write one; returns its records."""
        options = self.config.storage_options
        write_shard(shard, [Storage(root, options) for root in self.roots], Storage(self.config.output, options))
        return len(shard.records)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The same as a Ray Data task, whose error comes as a row: Ray would wrap it in one of its own."""
        try:
            return {"records": self.write(PlannedShard.from_json(row["shard"])), "error": None}
        except StorageError as error:
            return {"records": 0, "error": str(error)}


def finish(plan: PackPlan, output: Storage, kept: int) -> Packed:
    """Write the manifest of shards that are all there."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "records", "bytes"])
    rows.writerows([shard.name, len(shard.records), shard.size] for shard in plan.shards)
    output.write(MANIFEST, text.getvalue().encode())
    names = tuple(shard.name for shard in plan.shards)
    return Packed(output.uri, output.join(MANIFEST), names, plan.records, kept)


def _contents(records: Sequence[PlannedRecord], roots: Sequence[Storage]) -> Iterator[bytes]:
    if all(root.is_local for root in roots):
        yield from (roots[record.root].read(record.key) for record in records)
        return
    yield from computed_ahead(lambda record: roots[record.root].read(record.key), records, REQUESTS)


def _read_begun(output: Storage) -> _Begun:
    try:
        begun = json.loads(output.read(PACK))
        if begun["format_version"] == _FORMAT_VERSION:
            return _Begun.model_validate(begun)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{output.join(PACK)} is damaged; give another --output.") from error
    raise DataError(
        f"{output.join(PACK)} has format version {begun['format_version']!r}; this release reads {_FORMAT_VERSION}. "
        "Give another --output."
    )


def _refuse_other_pack(was: _Begun, now: _Begun, output: Storage) -> None:
    for name, value in now.settings.items():
        if was.settings.get(name) != value:
            raise ConfigError(
                f"{output.uri} holds a pack with {name} {was.settings.get(name)!r}, not {value!r}; give another --output or "
                "the same settings."
            )
    if was.digest != now.digest:
        raise DataError(
            f"the images are not those that {output.uri} was begun with ({was.records} then, {now.records} now; names or "
            "sizes differ); give another --output."
        )
