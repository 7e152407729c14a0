"""The batch loop: whatever waits when the model comes free goes through it together, without a time window."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from cflow_ray.errors import ServingError

Item = TypeVar("Item")
Result = TypeVar("Result")


class OverloadedError(ServingError):
    """More items wait than are allowed; the caller should come back later."""


class Batcher(Generic[Item, Result]):
    """Runs `work` on batches of waiting items in a thread of its own, one batch at a time.

    A batch is what waits when the model comes free, at most `limit` items: one item alone is not held back, and under
    load batches grow by themselves. `work` keeps length and order. Beyond `max_waiting` items `submit` raises
    OverloadedError. Must be made inside a running event loop.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], limit: int, max_waiting: int) -> None:
        self._work = work
        self._limit = limit
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue(max_waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop = asyncio.create_task(self._run())

    async def submit(self, item: Item) -> Result:
        """The result of one item; raises what `work` raised for its batch, or OverloadedError."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((item, answer))
        except asyncio.QueueFull as error:
            raise OverloadedError(f"{self._waiting.maxsize} images wait already; try again later") from error
        return await answer

    async def close(self) -> None:
        """Stop taking batches; what waits is cancelled."""
        self._loop.cancel()
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._limit and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._answer([(item, answer) for item, answer in batch if not answer.cancelled()])

    async def _answer(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            items = [item for item, _ in batch]
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():
                answer.set_result(result)
