"""The batch loop: batches are what waits, in order, bounded, and a failure reaches the items of its batch only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from cflow_ray.serve.batching import Batcher, OverloadedError


def test_what_waits_while_the_model_works_goes_together():
    gate, batches = threading.Event(), list[list[int]]()

    def work(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        gate.wait(10)
        return [10 * item for item in items]

    async def run() -> list[int]:
        batcher = Batcher(work, limit=4, max_waiting=100)
        first = asyncio.create_task(batcher.submit(0))
        while not batches:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.submit(item)) for item in range(1, 7)]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(first, *rest)
        await batcher.close()
        return list(results)

    assert asyncio.run(run()) == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_more_than_may_wait_is_refused_at_once():
    gate = threading.Event()

    async def run() -> None:
        batcher = Batcher(lambda items: (gate.wait(10), items)[1], limit=1, max_waiting=2)
        running = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 images wait"):
            await batcher.submit(3)
        gate.set()
        assert await asyncio.gather(running, *waiting) == [0, 1, 2]
        await batcher.close()

    asyncio.run(run())


def test_a_failure_reaches_its_batch_and_the_loop_goes_on():
    def work(items: Sequence[int]) -> Sequence[int]:
        if 13 in items:
            raise ValueError("thirteen")
        return items

    async def run() -> None:
        batcher = Batcher(work, limit=1, max_waiting=10)
        answers = await asyncio.gather(*(batcher.submit(item) for item in (1, 13, 2)), return_exceptions=True)
        assert (answers[0], answers[2]) == (1, 2)
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
        batcher = Batcher(work, limit=1, max_waiting=10)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        gone, kept = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        gate.set()
        assert await asyncio.gather(first, kept) == [0, 2]
        await batcher.close()

    asyncio.run(run())
    assert seen == [0, 2]
