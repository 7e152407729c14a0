"""A record as it comes out of an archive, and what an archive may not ask of its reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cflow_ray.config import ReadConfig
from cflow_ray.errors import CflowRayError, RecordError


@dataclass(frozen=True)
class Record:
    """One image of an archive: its bytes, or why they cannot be had."""

    key: str
    content: bytes | CflowRayError
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What side-cars, columns or a manifest say of it."""


def safe_key(name: str) -> str:
    """A member's name as text that any table can hold; bytes that are no UTF-8 are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def problem_of_name(name: str) -> str | None:
    """Why a member's name is not taken for a record's key, if it is not."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "unsafe_name: the name is no UTF-8; pack it again under a name that is"
    if name.startswith("/") or name[1:3] in (":/", ":\\"):
        return "unsafe_name: the name is an absolute path; pack it again relative to a folder"
    if ".." in name.replace("\\", "/").split("/"):
        return "unsafe_name: the name leaves its folder by '..'; pack it again without"
    if "\0" in name or not name:
        return "unsafe_name: the name is empty or holds a null byte"
    return None


def too_large(size: int, how: ReadConfig) -> RecordError | None:
    """The error of a record above the limit; None for the others."""
    if size <= how.max_image_size:
        return None
    return RecordError(f"{size} bytes; at most {how.max_image_size} are read (max_image_size)", "too_large")


def without_repeats(keys: Iterator[str]) -> Iterator[str | None]:
    """For each key the problem that it came before, if it did."""
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        before = first.setdefault(key, number)
        yield None if before == number else f"duplicate_key: record {before} of this shard has the same key"
