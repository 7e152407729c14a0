"""The state of a fit that is under way, beside the registry's checkpoints: what a killed worker's successor goes on from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import safetensors
import safetensors.torch
from torch import Tensor

from cflow_ray.errors import StorageError
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)


class StoredSavepoints:
    """The parts of one fit as files `<part>.safetensors` of a folder that is theirs alone, each written whole.

    Two writers of one folder do no harm: the same fit gives the same states. A state that cannot be written or read
    costs time, not the fit, so it is logged and done without.
    """

    def __init__(self, folder: Storage, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A part is due `seconds` after its last state, the first time after the start; 0: never."""
        self._folder = folder
        self._seconds = seconds
        self._clock = clock
        self._start = clock()
        self._saved: dict[str, float] = {}

    def load(self, part: str) -> dict[str, Tensor] | None:
        """A part's state; None where there is none, or none that is whole."""
        try:
            content = self._folder.read_if_there(_file(part))
            return None if content is None else safetensors.torch.load(content)
        except (StorageError, safetensors.SafetensorError) as error:
            log.warning("the savepoint %s is not used: %s", self._folder.join(_file(part)), error)
            return None

    def due(self, part: str) -> bool:
        """Whether so many seconds have passed."""
        return self._seconds > 0 and self._clock() - self._saved.get(part, self._start) >= self._seconds

    def save(self, part: str, state: dict[str, Tensor]) -> None:
        """Write a part's state in place of the one before."""
        try:
            self._folder.write(_file(part), safetensors.torch.save({name: _own(t) for name, t in state.items()}))
        except StorageError as error:
            log.warning("no savepoint this time: %s", error)
        self._saved[part] = self._clock()

    def forget(self, prefix: str = "") -> None:
        """Remove the files of the parts whose names start like this."""
        try:
            for name in self._folder.files():
                if name.startswith(prefix):
                    self._folder.remove(name)
        except StorageError as error:
            log.warning("savepoints are left in %s: %s", self._folder.uri, error)


def _file(part: str) -> str:
    return f"{part}.safetensors"


def _own(tensor: Tensor) -> Tensor:
    """A copy: safetensors refuses tensors that share memory."""
    return tensor.detach().clone().contiguous()
