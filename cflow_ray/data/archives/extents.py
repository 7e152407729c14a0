"""The records of one file, many small pieces of it, in few ranged reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from cflow_ray.data.archives.index import Extent, Member
from cflow_ray.errors import CflowRayError, RecordError, StorageError
from cflow_ray.store.storage import Storage

_GAP = 64 * 2**10  # bytes that are read to no use rather than asking again
_MOST = 64 * 2**20  # bytes of one read, unless one piece alone is larger


Found = dict[Extent, bytes | StorageError]


def fetch_members(
    storage: Storage,
    name: str,
    members: Sequence[Member],
    error_of: Callable[[Member], RecordError | None],
    extents_of: Callable[[Member], Iterable[Extent]] = lambda member: (member.extent,),
) -> Iterator[tuple[Member, bytes | CflowRayError, Found]]:
    """Each of some successive members of a file with its bytes, or why there are none, and all that was fetched with it.

    A member that has an error before it is read is not fetched.
    """
    errors = [error_of(member) for member in members]
    sizes = [0 if error else member.size for member, error in zip(members, errors, strict=True)]
    for run in batches(sizes):
        found = fetch(storage, name, (extent for n in run if not errors[n] for extent in extents_of(members[n])))
        for number in run:
            member = members[number]
            where = f"{member.key} in {storage.join(name)}"
            yield member, errors[number] or whole(found[member.extent], member.extent, where), found


def fetch(storage: Storage, name: str, wanted: Iterable[Extent]) -> Found:
    """The bytes of each extent of a file, fewer where the file ends inside; an error where it cannot be read."""
    found: Found = {}
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
