"""The fibres of one level that a fit draws from: locations of feature maps as rows, alone or in groups of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cflow_ray.model.features import LevelFeatures
from cflow_ray.model.position import position_encoding

# Shapes: T tiles (an image that is not cut is one tile), P = h * w positions, C channels, D condition channels.

# Hundreds of held-out tiles at one to three positions each, all of them the same, showed a likelihood .16 too high.
_POSITIONS_OF_A_SPREAD = 32


class Fibres:
    """Some tiles of a level at the positions that count, with every position's condition (P, D)."""

    def __init__(
        self, level: LevelFeatures, tiles: Sequence[int], condition_channels: int, inside_P: Tensor | None = None
    ) -> None:
        """`inside_P` (P,) says which positions lie in the region of interest; None takes all."""
        self._level = level
        self._tiles = list(tiles)
        self._positions = torch.arange(level.positions) if inside_P is None else inside_P.nonzero()[:, 0]
        self._condition_PD = position_encoding(condition_channels, *level.size)

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return len(self._tiles)

    @property
    def positions(self) -> int:
        """How many positions of a tile count."""
        return len(self._positions)

    @property
    def channels(self) -> int:
        """C."""
        return self._level.channels

    def draw(self, count: int, generator: torch.Generator, positions: int) -> tuple[Tensor, Tensor]:
        """About `count` fibres (t, p, C), at p random positions of t random tiles, and the condition (p, D).

        Where tiles are few, at more positions than that.
        """
        positions = max(positions, count // len(self._tiles))
        at_P = self._positions[torch.randperm(len(self._positions), generator=generator)[:positions]]
        of_T = torch.randperm(len(self._tiles), generator=generator)[: max(1, count // len(at_P))].tolist()
        return self._level.fibres([self._tiles[of] for of in of_T], at_P), self._condition_PD[at_P]

    def spread(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """About `count` fibres from as many tiles as there are, at some random positions at least."""
        return self.draw(count, generator, _POSITIONS_OF_A_SPREAD)

    def batches(self, size: int, generator: torch.Generator) -> list[list[int]]:
        """The tiles, shuffled, in batches of `size`; a last, smaller batch is dropped unless it is the only one."""
        order = torch.randperm(len(self._tiles), generator=generator).tolist()
        size = min(size, len(order))
        return [
            [self._tiles[number] for number in order[at : at + size]] for at in range(0, len(order) - size + 1, size)
        ]

    def shuffled(self, tiles: Sequence[int], count: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All fibres of some tiles in random order, `count` at a time: (N, C) with conditions (N, D).

        A last, smaller draw is dropped unless it is the only one, as in the official code.
        """
        rows_EC = self._level.fibres(tiles, self._positions).flatten(0, 1)
        condition_ED = self._condition_PD[self._positions].repeat(len(tiles), 1)
        order_E = torch.randperm(len(rows_EC), generator=generator)
        count = min(count, len(rows_EC))
        for at in range(0, len(rows_EC) - count + 1, count):
            chosen_N = order_E[at : at + count]
            yield rows_EC[chosen_N], condition_ED[chosen_N]
