"""More than a replica can do: refused at once, or given up at the deadline, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.serving import Served, files, kind_of, serving

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def held_up(served: Served) -> AsyncIterator[threading.Event]:
    """The model's thread is busy until the event is set."""
    gate, begun = threading.Event(), asyncio.Event()
    loop, thread = asyncio.get_running_loop(), served.service._batcher._thread

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(60)

    thread.submit(work)
    await begun.wait()
    try:
        yield gate
    finally:
        gate.set()


async def until_in_hand(served: Served, images: int) -> None:
    async with asyncio.timeout(60):
        while served.service.room.taken != images:
            await asyncio.sleep(0.01)


async def test_what_is_too_much_is_refused_at_once_and_the_rest_answered(
    fitted_registry: Path, images: list[bytes]
) -> None:
    async with serving(fitted_registry, max_waiting=3, max_images=3) as served:
        post = served.client.post
        await post("/v1/score/cat", content=images[0])
        async with held_up(served) as gate:
            first = [asyncio.create_task(post("/v1/score/cat", content=image)) for image in images[:2]]
            await until_in_hand(served, 2)
            several = await post("/v1/score/cat", files=files(images[:2]))  # one has room, two have not
            assert kind_of(several) == "overloaded"
            first.append(asyncio.create_task(post("/v1/score/cat", content=images[2])))
            await until_in_hand(served, 3)
            refused = await post("/v1/score/cat", content=images[3])
            assert kind_of(refused) == "overloaded"
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert (await served.client.get("/healthz")).status_code == 200
            gate.set()
            answers: list[httpx.Response] = await asyncio.gather(*first)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert served.service.room.taken == 0


@pytest.mark.parametrize("longest", [0.2, 3600])
async def test_past_the_deadline_a_request_is_given_up_and_not_worked_on(
    fitted_registry: Path, images: list[bytes], longest: float
) -> None:
    async with serving(fitted_registry, deadline_seconds=longest) as served:
        await served.service._loading.ready(served.service.checkpoints["cat"].key)
        headers = {} if longest < 1 else {"X-Deadline-Ms": "200"}
        async with held_up(served) as gate:
            late = await served.client.post("/v1/score/cat", content=images[0], headers=headers)
            assert kind_of(late) == "deadline"
            assert late.status_code == 504
            assert served.service.room.taken == 0
            gate.set()
        generous = {"X-Deadline-Ms": "60000"} if longest > 1 else {}
        assert (await served.client.post("/v1/score/cat", content=images[1], headers=generous)).status_code == 200
        counted = served.service.metrics.images.labels("cat")._value.get()
    assert counted == 1


async def test_a_client_that_hangs_up_leaves_nothing_behind(fitted_registry: Path, images: list[bytes]) -> None:
    async with serving(fitted_registry) as served:
        async with held_up(served):
            asked = asyncio.create_task(served.client.post("/v1/score/cat", content=images[0]))
            await until_in_hand(served, 1)
            asked.cancel()
            await until_in_hand(served, 0)
        assert (await served.client.post("/v1/score/cat", content=images[0])).status_code == 200


async def test_a_cold_category_holds_up_no_other_and_is_loaded_once(fitted_registry: Path, images: list[bytes]) -> None:
    async with serving(fitted_registry) as served:
        bank, slow, loads = served.service._bank, threading.Event(), list[str]()
        load = bank._load_detector

        def slowly(key: tuple[str, str]) -> object:
            loads.append(key[0])
            assert key[0] != "rocket" or slow.wait(60)
            return load(key)

        bank._load_detector = slowly  # type: ignore[assignment]
        post = served.client.post
        cold = [asyncio.create_task(post("/v1/score/rocket", content=image)) for image in images[:8]]
        await until_in_hand(served, 8)
        for category in ("cat", "cup", "cat"):
            assert (await post(f"/v1/score/{category}", content=images[0])).status_code == 200
        assert not any(task.done() for task in cold)
        slow.set()
        assert [answer.status_code for answer in await asyncio.gather(*cold)] == [200] * 8
        assert sorted(loads) == ["cat", "cup", "rocket"]
