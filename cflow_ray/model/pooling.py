"""Features that the members of a team encoded, each a share of the images, put together for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cflow_ray.model.features import Features, Keep, LevelFeatures
from cflow_ray.model.team import Team
from cflow_ray.model.tiling import Layout

_TILES_OF_A_MESSAGE = 256  # bounds the memory beside the features themselves


@dataclass(frozen=True)
class _Share:
    """All of a member's features but their values."""

    sizes: tuple[tuple[int, int], ...]
    """Of every level's maps; empty where the member has no image."""
    channels: tuple[int, ...]
    scales: tuple[float, ...]
    tiles: int
    layouts: tuple[Layout, ...]
    tiles_of: tuple[range, ...]
    copies_of: tuple[range, ...]

    @classmethod
    def of(cls, features: Features) -> _Share:
        levels = features.levels
        return cls(
            tuple(level.size for level in levels),
            tuple(level.channels for level in levels),
            tuple(level.scale for level in levels),
            len(levels[0].tiles) if levels else 0,
            features.layouts,
            features.tiles_of,
            features.copies_of,
        )


def pooled(own: Features, member_of: Sequence[int], team: Team, keep: Keep) -> Features:
    """The features of all members' images; `member_of` says by rank whose each image is, in their final order.

    Each member's images keep their order. Values are those that one process would have encoded, but for the last bit of
    half precision: every member rounds by draws of its own.
    """
    if team.size == 1:
        return own
    shares = team.gather(_Share.of(own))
    with_images = [share for share in shares if share.sizes]
    if not with_images:
        return own
    levels = tuple(
        LevelFeatures(size, max(share.scales[number] for share in with_images))
        for number, size in enumerate(with_images[0].sizes)
    )
    for rank, share in enumerate(shares):
        for number, level in enumerate(levels if share.sizes else ()):
            given = own.levels[number] if rank == team.rank else None
            _receive(level, given, (rank, share.tiles, share.channels[number]), team, keep)
    first_tiles = [sum(share.tiles for share in shares[:rank]) for rank in range(team.size)]
    left = [iter(range(len(share.layouts))) for share in shares]
    places = [(shares[rank], next(left[rank]), first_tiles[rank]) for rank in member_of]
    return Features(
        levels,
        tuple(share.layouts[image] for share, image, _ in places),
        tuple(_moved(share.tiles_of[image], by) for share, image, by in places),
        tuple(_moved(share.copies_of[image], by) for share, image, by in places),
    )


def _receive(level: LevelFeatures, own: LevelFeatures | None, of: tuple[int, int, int], team: Team, keep: Keep) -> None:
    """Append a member's tiles to a level; `own` holds them where the member is this one. `of`: rank, tiles, channels."""
    rank, tiles, channels = of
    for start in range(0, tiles, _TILES_OF_A_MESSAGE):
        numbers = range(start, min(start + _TILES_OF_A_MESSAGE, tiles))
        if own is None:
            rows_tPC = torch.empty(len(numbers), level.positions, channels, dtype=torch.float16)
        else:
            rows_tPC = torch.stack([own.tiles[number] for number in numbers]) * (own.scale / level.scale)
        team.take_from(rank, rows_tPC)
        level.tiles += keep(rows_tPC).unbind()


def _moved(tiles: range, by: int) -> range:
    return range(tiles.start + by, tiles.stop + by)
