"""The official code's cost of having a decoder to load weights into: FrEIA blocks with soft permutations."""

from __future__ import annotations

from typing import Any

from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import nn

from benchmarks.meter import Meter, answer


def measure(channels: list[int], blocks: int, condition: int) -> dict[str, Any]:
    """CPU and wall seconds of all levels' blocks: one block a level is built, its time counts `blocks` times."""
    levels = []
    for width in channels:
        with Meter() as meter:
            SequenceINN(width).append(
                AllInOneBlock,
                cond=0,
                cond_shape=(condition,),
                subnet_constructor=_subnet,
                affine_clamping=1.9,
                global_affine_type="SOFTPLUS",
                permute_soft=True,
            )
        levels.append({"channels": width, "one_block": meter.as_dict()})
    total = {unit: round(blocks * sum(level["one_block"][unit] for level in levels), 2) for unit in ("cpu", "wall")}
    return {**total, "levels": levels}


def _subnet(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(channels_in, 2 * channels_in), nn.ReLU(), nn.Linear(2 * channels_in, channels_out))


if __name__ == "__main__":
    answer(measure)
