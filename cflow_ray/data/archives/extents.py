"""Many small pieces of one file in few ranged reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cflow_ray.data.archives.index import Extent
from cflow_ray.errors import StorageError
from cflow_ray.store.storage import Storage

_GAP = 64 * 2**10  # bytes that are read to no use rather than asking again
_MOST = 64 * 2**20  # bytes of one read, unless one piece alone is larger


def fetch(storage: Storage, name: str, wanted: Iterable[Extent]) -> dict[Extent, bytes | StorageError]:
    """The bytes of each extent of a file, fewer where the file ends inside; an error where it cannot be read."""
    found: dict[Extent, bytes | StorageError] = {}
    for group in grouped(wanted):
        start, end = group[0].offset, max(extent.offset + extent.size for extent in group)
        try:
            span = storage.read(name, start, end)
        except StorageError as error:
            found.update(dict.fromkeys(group, error))
            continue
        for extent in group:
            at = extent.offset - start
            found[extent] = span[at : at + extent.size]
    return found


def whole(content: bytes | StorageError, extent: Extent, where: str) -> bytes | StorageError:
    """What was fetched of an extent, an error unless it is all of it; `where` names file and record."""
    if isinstance(content, bytes) and len(content) < extent.size:
        return StorageError(f"{where} is cut off: the file ends inside")
    return content


def grouped(wanted: Iterable[Extent], gap: int = _GAP, most: int = _MOST) -> Iterator[list[Extent]]:
    """Extents in order of their offset, in groups that one read is to fetch."""
    group: list[Extent] = []
    end = 0
    for extent in sorted(set(wanted), key=lambda one: (one.offset, one.size)):
        until = max(end, extent.offset + extent.size)
        if group and (extent.offset - end > gap or until - group[0].offset > most):
            yield group
            group, until = [], extent.offset + extent.size
        group.append(extent)
        end = until
    if group:
        yield group


def batches(sizes: Sequence[int], most: int = _MOST) -> Iterator[range]:
    """Successive runs of items that together hold at most `most` bytes, or one item each."""
    first, total = 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + max(0, size) > most:
            yield range(first, number)
            first, total = number, 0
        total += max(0, size)
    if first < len(sizes):
        yield range(first, len(sizes))
