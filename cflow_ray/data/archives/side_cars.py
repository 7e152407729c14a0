"""Side-cars of WebDataset's tars: files that are no records but say something of the image beside them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from cflow_ray.data.archives.index import Member
from cflow_ray.data.images import is_image_name
from cflow_ray.errors import CflowRayError

SIDE_CARS = ("json", "cls", "txt")
"""Extensions of WebDataset's files that say something of the image of the same name."""


def owners_of(members: Sequence[Member], other_images: bool = False) -> list[str | None]:
    """For each member that is a side-car `name_of` the images that it speaks of; None for the others, which are records.

    A side-car's images have its name but for the last extension, as `cam1.000.png` has that of `cam1.000.json`. Only
    where there is none it speaks of an image of its WebDataset sample, as `x.json` of `x.mask.png`, if that is the
    sample's only one: with `other_images`, of which these members are a part, it never is.
    """
    names: set[str] = set()
    samples: dict[str, set[str]] = {}
    for member in members:
        if is_image_name(member.key):
            names.add(name_of(member.key))
            samples.setdefault(sample_of(member.key), set()).add(member.key)

    def owner_of(member: Member) -> str | None:
        if side_of(member.key) is None or member.problem is not None:
            return None
        if (name := name_of(member.key)) in names:
            return name
        images = samples.get(sample_of(member.key), set())
        return name_of(*images) if len(images) == 1 and not other_images else None

    return [owner_of(member) for member in members]


def sides_of_names(members: Sequence[Member], owners: Sequence[str | None]) -> dict[str, dict[str, int]]:
    """For each name that side-cars speak of their places among the members, by kind.

    One of the name itself comes before one that has only the sample in common.
    """
    sides: dict[str, dict[str, int]] = {}
    for number, (member, owner) in enumerate(zip(members, owners, strict=True)):
        side = side_of(member.key)
        if owner is not None and side is not None:
            kinds = sides.setdefault(owner, {})
            if side not in kinds or name_of(member.key) == owner:
                kinds[side] = number
    return sides


def name_of(key: str) -> str:
    """A member's path without its last extension."""
    return posixpath.splitext(key)[0]


def sample_of(key: str) -> str:
    """What the files of one WebDataset sample share: the path up to the first dot of the name."""
    folder, name = posixpath.split(key)
    return posixpath.join(folder, name.partition(".")[0])


def side_of(key: str) -> str | None:
    """The kind of side-car that a member is by its name."""
    ending = posixpath.splitext(key)[1].removeprefix(".").lower()
    return ending if ending in SIDE_CARS else None


def fields_of_sides(sides: Mapping[str, bytes | CflowRayError]) -> dict[str, Any]:
    """What side-cars say: the entries of a JSON object, and the text of the others under their extension."""
    fields: dict[str, Any] = {}
    for side, content in sides.items():
        if isinstance(content, CflowRayError):
            continue
        text = content.decode("utf-8", "replace").strip()
        try:
            values = json.loads(text) if side == "json" else {side: text}
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            fields |= values
    return fields
