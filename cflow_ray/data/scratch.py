"""Where a fit keeps its encoded features: in memory up to a budget, then in memory maps of files without a name."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor


class FeatureCache:
    """Keeps tensors; past the budget they go to a folder of the node and are read from there as they are needed."""

    def __init__(self, budget_bytes: int, folder: str | None = None) -> None:
        """`folder` is on the worker's node; None takes the system's temporary folder."""
        self._left = budget_bytes
        self._folder = folder
        self.mapped_bytes = 0
        """How much lies in files."""

    def keep(self, rows: Tensor) -> Tensor:
        """The same values, in memory or in a file that the system removes with the last reference to it."""
        size = rows.numel() * rows.element_size()
        if size <= self._left:
            self._left -= size
            return rows
        self.mapped_bytes += size
        return _mapped(rows, self._folder)


def _mapped(rows: Tensor, folder: str | None) -> Tensor:
    values = rows.numpy()
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the closed file
        mapped = np.memmap(file, dtype=values.dtype, mode="w+", shape=values.shape)
    mapped[:] = values
    return torch.from_numpy(mapped)
