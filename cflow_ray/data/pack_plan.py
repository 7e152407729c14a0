"""Which images go into which shard, and how long each shard will be: known from a listing, before anything is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cflow_ray.config import PackConfig, ReadConfig
from cflow_ray.data.archives import find_shards
from cflow_ray.data.archives.records import problem_of_name, safe_key
from cflow_ray.data.archives.tar_shards import END_BYTES, record_bytes, shard_name
from cflow_ray.data.datasets import read_data_set
from cflow_ray.errors import DataError
from cflow_ray.store.ahead import REQUESTS, computed_ahead
from cflow_ray.store.storage import Storage


class PlannedRecord(NamedTuple):
    """An image to pack: its path below a root, which is its key."""

    key: str
    size: int
    root: int
    """Its number in the plan."""


@dataclass(frozen=True)
class PlannedShard:
    """A tar to write."""

    name: str
    size: int
    """Of the file, in bytes."""
    records: tuple[PlannedRecord, ...]

    def to_json(self) -> str:
        """As it travels to its task."""
        return json.dumps([self.name, self.size, self.records])

    @classmethod
    def from_json(cls, text: str) -> PlannedShard:
        """What `to_json` made."""
        name, size, records = json.loads(text)
        return cls(name, size, tuple(PlannedRecord(*record) for record in records))


@dataclass(frozen=True)
class PackPlan:
    """All shards in order, and the roots of their images."""

    roots: tuple[str, ...]
    shards: tuple[PlannedShard, ...]

    @property
    def records(self) -> int:
        """Images in all."""
        return sum(len(shard.records) for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 over names, keys, sizes and roots; an image that changed and kept its length does not change it."""
        sha = hashlib.sha256(json.dumps(self.roots).encode())
        for shard in self.shards:
            sha.update(shard.to_json().encode())
        return sha.hexdigest()


def plan_pack(config: PackConfig) -> PackPlan:
    """The plan of a data set's images or of those that the inputs name, each image once; the same for the same listing.

    Raises DataError where there is no image, an input is an archive, or a key cannot be one or names two images;
    StorageError where a file is not there.
    """
    plain = bool(config.inputs)
    roots, found = _of_inputs(config) if plain else _of_data_set(config)
    records = tuple(dict.fromkeys(found))
    _refuse_keys(records, roots)
    name = config.name or ("images" if plain else config.split or "all")
    return PackPlan(roots, tuple(divide(records, name, config.shard_size)))


def divide(records: Iterable[PlannedRecord], name: str, shard_bytes: int) -> Iterator[PlannedShard]:
    """Records in their order as shards of about `shard_bytes`; one that is larger has a shard of its own."""
    number, end, held = 0, 0, list[PlannedRecord]()
    for record in records:
        if held and end + record.size > shard_bytes:
            yield PlannedShard(shard_name(name, number), end + END_BYTES, tuple(held))
            number, end, held = number + 1, 0, []
        held.append(record)
        end += record_bytes(record.key, record.size)
    if held:
        yield PlannedShard(shard_name(name, number), end + END_BYTES, tuple(held))


def _of_data_set(config: PackConfig) -> tuple[tuple[str, ...], list[PlannedRecord]]:
    data_set = read_data_set(config, config.storage_options)
    samples = [s for category in data_set.chosen(config.only) for s in data_set.of(category, config.split)]
    if not samples:
        splits = sorted({sample.split for sample in data_set.samples})
        raise DataError(f"no image of split {config.split!r} in {config.data}; its splits are {', '.join(splits)}.")
    sizes = data_set.root.sizes()
    known = [PlannedRecord(sample.image, sizes.get(sample.image, -1), 0) for sample in samples]
    return (data_set.root.uri,), _with_sizes(known, [data_set.root])


def _of_inputs(config: PackConfig) -> tuple[tuple[str, ...], list[PlannedRecord]]:
    roots: dict[str, int] = {}
    known = []
    for shard, index in find_shards(config.inputs, config.storage_options, ReadConfig()):
        if index is None:
            raise DataError(
                f"the input {shard.uri} is an archive; only image files are packed, `score` reads it as it is."
            )
        for member in index.members:
            _refuse_name(member.key, member.problem, shard.uri)
        root = roots.setdefault(shard.uri, len(roots))
        known += [PlannedRecord(member.key, member.size, root) for member in index.members]
    return tuple(roots), _with_sizes(known, [Storage(root, config.storage_options) for root in roots])


def _with_sizes(records: list[PlannedRecord], roots: list[Storage]) -> list[PlannedRecord]:
    """Sizes that no listing gave are asked for one by one."""

    def with_size(record: PlannedRecord) -> PlannedRecord:
        return record if record.size >= 0 else record._replace(size=roots[record.root].size(record.key))

    return list(computed_ahead(with_size, records, REQUESTS))


def _refuse_keys(records: Iterable[PlannedRecord], roots: tuple[str, ...]) -> None:
    first: dict[str, int] = {}
    for key, _, root in records:
        _refuse_name(key, problem_of_name(key), roots[root])
        if (other := first.setdefault(key, root)) != root:
            raise DataError(f"{roots[other]} and {roots[root]} both hold {key!r}; pack them into outputs of their own.")


def _refuse_name(key: str, problem: str | None, root: str) -> None:
    """Refuse what is no key; an image that inputs name twice is packed once."""
    kind, _, text = (problem or "").partition(": ")
    if kind == "unsafe_name":
        raise DataError(f"{safe_key(key)!r} in {root} cannot be packed: {text}.")
