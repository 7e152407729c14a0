"""Archives of many records that are few images over and over, by reference: a night's number without its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.images import draw_factory
from benchmarks.sides import OURS, run_side
from cflow_ray.data.archives import INDEX_SUFFIX, Member, ShardIndex, write_shards
from cflow_ray.store.storage import Storage

_SHARD_RECORDS = 10_000


@dataclass(frozen=True)
class Night:
    """Few drawn images, the registry with a detector for them, and a folder for archives of as many records as asked."""

    work: Path
    category: str
    blobs: Sequence[bytes]

    @classmethod
    def prepare(cls, work: Path, blobs: int, side: int) -> Self:
        """Draw the images and fit the detector."""
        root = work / "data"
        (category,) = draw_factory(root, [(24, blobs)], side)
        detector = {"recipe": "fast", "calibration": "split", "input_size": side}
        place = {"root": str(root), "category": category, "registry": str(work / "registry")}
        run_side(OURS, "ours.fitting", 1, detector=detector, **place)
        return cls(work, category, [path.read_bytes() for path in sorted((root / category / "test").rglob("*.png"))])

    def job(self, count: int) -> dict[str, Any]:
        """What `score` is told to score so many records, which are made here."""
        shards = Storage(str(self.work / f"{count}" / "in"))
        _refer(shards, self.category, self.blobs, count)
        output = str(self.work / f"{count}" / "out")
        return {"inputs": [shards.uri], "output": output, "registry": str(self.work / "registry")}


def _refer(shards: Storage, category: str, blobs: Sequence[bytes], count: int) -> None:
    """Tars of the blobs whose indexes have so many records in all, each with the bytes of a blob."""
    for number, first in enumerate(range(0, count, _SHARD_RECORDS)):
        files = ((f"{blob_number}.png", blob) for blob_number, blob in enumerate(blobs))
        (tar,) = write_shards(files, shards, f"night-{number:03d}", 2**40)
        written = ShardIndex.from_json(shards.read(tar + INDEX_SUFFIX))
        assert written is not None
        places = [(member.offset, member.size) for member in written.members]
        records = range(first, min(count, first + _SHARD_RECORDS))
        members = [Member(f"{category}/{record:08d}.png", *places[record % len(places)]) for record in records]
        shards.write(tar + INDEX_SUFFIX, ShardIndex(tuple(members)).to_json(shards.size(tar)))
