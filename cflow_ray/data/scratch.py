"""Where a fit keeps its encoded features: in memory up to a budget, then in memory maps of files without a name."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cflow_ray.errors import StorageError

_SEGMENT_BYTES = 2**28  # of a file: every map holds a descriptor, and a process may have but a thousand
_ALIGNED = 64


class FeatureCache:
    """Keeps tensors; past the budget they go to a folder of the node and are read from there as they are needed."""

    def __init__(self, budget_bytes: int, folder: str | None = None) -> None:
        """`folder` is on the worker's node; None takes the system's temporary folder."""
        self._left = budget_bytes
        self._folder = folder
        self._segment = np.empty(0, np.uint8)
        """What is left of the newest file."""
        self.mapped_bytes = 0
        """How much lies in files."""

    def keep(self, rows: Tensor) -> Tensor:
        """The same values, in memory or in a file that the system removes with the last reference to it.

        Raises StorageError where the folder has no room.
        """
        size = rows.numel() * rows.element_size()
        if size <= self._left:
            self._left -= size
            return rows
        self.mapped_bytes += size
        values = rows.numpy()
        place = self._room(size).view(values.dtype).reshape(values.shape)
        place[...] = values
        return torch.from_numpy(place)

    def _room(self, size: int) -> NDArray[np.uint8]:
        if size > len(self._segment):
            self._segment = _mapped_file(max(size, _SEGMENT_BYTES), self._folder)
        room = self._segment[:size]
        self._segment = self._segment[-(-size // _ALIGNED) * _ALIGNED :]
        return room


def _mapped_file(size: int, folder: str | None) -> NDArray[np.uint8]:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the closed file
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, a killed worker later
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    except OSError as error:
        raise StorageError(
            f"no room for {size} bytes of encoded features in {folder or tempfile.gettempdir()}: {error.strerror}. "
            "Give a folder that every node has as `scratch`, or raise `cache_mb`."
        ) from error
