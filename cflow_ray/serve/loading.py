"""Cold categories: detectors are read and compiled in threads of their own, while batches of others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from cflow_ray.model.bank import DetectorBank, LoadedDetector

Key = TypeVar("Key", bound=Hashable)

_AT_ONCE = 4  # reads of a slow store may overlap; compiling is one at a time anyway


class Loading(Generic[Key]):
    """Brings detectors into a bank; requests for the same one share one load."""

    def __init__(self, bank: DetectorBank[Key]) -> None:
        self._bank = bank
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="loading")
        self._loads: dict[Key, asyncio.Future[LoadedDetector]] = {}

    async def ready(self, key: Key) -> LoadedDetector:
        """The detector of a key once it can score; raises what the bank's loaders raise."""
        held = self._bank.ready(key)
        if held is not None:
            return held
        if key not in self._loads:
            load = asyncio.get_running_loop().run_in_executor(self._threads, self._bank.load, key)
            load.add_done_callback(lambda done: self._done(key, done))
            self._loads[key] = load
        return await asyncio.shield(self._loads[key])  # one who gives up does not stop it for the others

    def close(self) -> None:
        """Take no more loads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, key: Key, load: asyncio.Future[LoadedDetector]) -> None:
        del self._loads[key]
        if not load.cancelled():
            load.exception()  # looked at, in case all who waited are gone
