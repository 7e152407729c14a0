"""Where randomness comes from: every use of a seed has a generator of its own, so that none disturbs another's draws."""

from __future__ import annotations

import zlib

import torch


def category_seed(run_seed: int, category: str) -> int:
    """The seed of a category, from the run's seed and its name, so that neither order nor company matters."""
    return zlib.crc32(f"{run_seed}/{category}".encode())


def model_seed(seed: int, number: int) -> int:
    """The seed of one of the models of a cross-calibrated fit."""
    return zlib.crc32(f"{seed}/{number}".encode())


def seeded(seed: int, use: str) -> torch.Generator:
    """The generator of one use of a seed."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{use}".encode()))
