"""The batch loop: whatever waits when the model comes free goes through it together, without a time window."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answered(Generic[Result]):
    """The result of one item, and the seconds it waited and its batch was worked on."""

    result: Result
    waited: float
    worked: float


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    since: float
    answer: asyncio.Future[Answered[Result]]


class Batcher(Generic[Item, Result]):
    """Runs `work` on batches of waiting items in a thread of its own, one batch at a time.

    A batch is what waits when the model comes free, at most `limit` items: one item alone is not held back, and under
    load batches grow by themselves. `work` keeps length and order; `observe` is told the length of every batch. How
    many may wait is for the caller to bound. Must be made inside a running event loop.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        limit: int,
        observe: Callable[[int], None] = lambda length: None,
    ) -> None:
        self._work = work
        self._limit = limit
        self._observe = observe
        self._queue: asyncio.Queue[_Waiting[Item, Result]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop = asyncio.create_task(self._run())

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return self._queue.qsize()

    async def submit(self, item: Item) -> Answered[Result]:
        """The result of one item; raises what `work` raised for its batch. Cancelled while it waits, it is dropped."""
        answer: asyncio.Future[Answered[Result]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(item, time.perf_counter(), answer))
        return await answer

    async def close(self) -> None:
        """Stop taking batches; what waits is cancelled."""
        self._loop.cancel()
        while not self._queue.empty():
            self._queue.get_nowait().answer.cancel()
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._limit and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._answer([waiting for waiting in batch if not waiting.answer.done()])

    async def _answer(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        if not batch:
            return
        self._observe(len(batch))
        start = time.perf_counter()
        try:
            items = [waiting.item for waiting in batch]
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        except Exception as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        worked = time.perf_counter() - start
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(Answered(result, start - waiting.since, worked))
