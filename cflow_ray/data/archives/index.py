"""The index of a shard: which records it holds, in order, and where their bytes lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cflow_ray.data.archives.records import without_repeats
from cflow_ray.errors import RecordError

INDEX_SUFFIX = ".index.json"
_INDEX_VERSION = 2


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Member:
    """One record: its key, and where its bytes lie in the shard."""

    key: str
    offset: int = 0
    """In bytes; of a Parquet file the row, of image files nothing."""
    size: int = -1
    """In bytes as they are stored; -1 where only reading tells."""
    problem: str | None = None
    """`kind: text` where the record is known to be unusable."""
    sides: Mapping[str, Extent] = field(default_factory=dict)
    """Side-car files of the record by extension (`json`, `cls`, `txt`)."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What a manifest says of it."""
    packed: tuple[int, int, int, int] | None = None
    """Of a zip: method, bytes once unpacked, CRC-32, bytes packed."""

    @property
    def extent(self) -> Extent:
        """Where its bytes lie."""
        return Extent(self.offset, self.size)

    @property
    def error(self) -> RecordError | None:
        """The problem as an error."""
        if self.problem is None:
            return None
        kind, _, text = self.problem.partition(": ")
        return RecordError(text, kind)

    def to_row(self) -> list[Any]:
        """Key, offset, size, and an object of what else there is."""
        sides = {name: [extent.offset, extent.size] for name, extent in self.sides.items()}
        more = {"problem": self.problem, "sides": sides, "fields": dict(self.fields), "packed": self.packed}
        kept = {name: value for name, value in more.items() if value}
        return [self.key, self.offset, self.size, *([kept] if kept else [])]

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Member:
        """What `to_row` made."""
        key, offset, size, *rest = row
        if not rest:
            return cls(key, offset, size)
        (more,) = rest
        sides = {name: Extent(*extent) for name, extent in more.get("sides", {}).items()}
        packed = tuple(more["packed"]) if "packed" in more else None
        return cls(key, offset, size, more.get("problem"), sides, more.get("fields", {}), packed)


@dataclass(frozen=True)
class ShardIndex:
    """The records of a shard in order; `damage` says why there are no more, if the shard is not whole."""

    members: tuple[Member, ...]
    damage: str | None = None

    @classmethod
    def of(cls, members: Sequence[Member], damage: str | None = None) -> ShardIndex:
        """An index in which a key that came before is a problem of the later record."""
        repeats = without_repeats(member.key for member in members)
        return cls(
            tuple(
                member if repeat is None or member.problem else replace(member, problem=repeat)
                for member, repeat in zip(members, repeats, strict=True)
            ),
            damage,
        )

    def __len__(self) -> int:
        """Records: the members, and one more that says what damage hides the rest."""
        return len(self.members) + (self.damage is not None)

    def to_json(self, size: int = -1) -> bytes:
        """The index as a file; `size` is that of the archive it belongs to."""
        members = [member.to_row() for member in self.members]
        content = {"format_version": _INDEX_VERSION, "size": size, "damage": self.damage, "members": members}
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, content: bytes, size: int | None = None) -> ShardIndex | None:
        """What `to_json` wrote; None where it is of another version or of an archive of another size."""
        try:
            values = json.loads(content)
            if values["format_version"] != _INDEX_VERSION or size not in (None, values["size"]):
                return None
            return cls(tuple(Member.from_row(row) for row in values["members"]), values["damage"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
