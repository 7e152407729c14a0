"""The batch loop: batches are what waits, in order, and a failure reaches the items of its batch only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from cflow_ray.serve.batching import Batcher


def test_what_waits_while_the_model_works_goes_together():
    gate, batches = threading.Event(), list[list[int]]()

    def work(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        gate.wait(10)
        return [10 * item for item in items]

    async def run() -> list[int]:
        batcher = Batcher(work, limit=4)
        first = asyncio.create_task(batcher.submit(0))
        while not batches:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.submit(item)) for item in range(1, 7)]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(first, *rest)
        await batcher.close()
        return [answered.result for answered in results]

    assert asyncio.run(run()) == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_failure_reaches_its_batch_and_the_loop_goes_on():
    def work(items: Sequence[int]) -> Sequence[int]:
        if 13 in items:
            raise ValueError("thirteen")
        return items

    async def run() -> None:
        batcher = Batcher(work, limit=1)
        answers = await asyncio.gather(*(batcher.submit(item) for item in (1, 13, 2)), return_exceptions=True)
        assert (answers[0].result, answers[2].result) == (1, 2)
        assert isinstance(answers[1], ValueError)
        await batcher.close()

    asyncio.run(run())


def test_a_cancelled_item_is_not_worked_on():
    gate, seen = threading.Event(), list[int]()

    def work(items: Sequence[int]) -> Sequence[int]:
        seen.extend(items)
        gate.wait(10)
        return items

    async def run() -> None:
        batcher = Batcher(work, limit=1)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        gone, kept = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        gate.set()
        assert [answered.result for answered in await asyncio.gather(first, kept)] == [0, 2]
        await batcher.close()

    asyncio.run(run())
    assert seen == [0, 2]
