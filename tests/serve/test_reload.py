"""The server follows the registry: moved pointers, broken checkpoints, a registry that is gone."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from torch import Tensor

from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.serving import Served, add_version, kind_of, serving
from tests.versions import copy_version

pytestmark = pytest.mark.anyio

MOVES, CLIENTS = 50, 4


async def refreshed(served: Served) -> None:
    await asyncio.to_thread(served.service.checkpoints.refresh)


async def served_versions(served: Served) -> dict[str, str]:
    return {item["category"]: item["checkpoint"] for item in (await served.client.get("/v1/categories")).json()}


def metric(served: Served, line: str) -> float:
    [value] = [
        text.rpartition(" ")[2] for text in served.service.metrics.text().decode().splitlines() if text.startswith(line)
    ]
    return float(value)


async def test_no_answer_is_lost_or_mixed_while_the_pointer_moves(own_registry: Path, images: list[bytes]) -> None:
    registry = Registry(Storage(str(own_registry)))
    versions = registry.versions("cat")
    image = images[0]
    async with serving(own_registry, reload_seconds=0.001, capacity_mb=1) as served:
        truth = {}
        for version in versions:
            registry.promote("cat", version)
            await refreshed(served)
            answer = (await served.client.post("/v1/score/cat", content=image)).json()
            assert answer["checkpoint"] == version
            truth[version] = answer["score"]
        assert abs(truth[versions[0]] - truth[versions[1]]) > 0.01  # so that a mix-up shows
        done, answers = asyncio.Event(), []

        async def hammer() -> None:
            while not done.is_set():
                answer = await served.client.post("/v1/score/cat", content=image)
                assert answer.status_code == 200, answer.text
                answers.append(answer.json())

        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(hammer())
            for move in range(MOVES):
                await asyncio.to_thread(registry.promote, "cat", versions[move % 2])
                seen = len(answers)
                while (await served_versions(served))["cat"] != versions[move % 2] or len(answers) == seen:
                    await asyncio.sleep(0)
            done.set()
    assert len(answers) >= MOVES
    assert {answer["checkpoint"] for answer in answers} == set(versions)
    for answer in answers:
        assert abs(answer["score"] - truth[answer["checkpoint"]]) <= 1e-5


@pytest.mark.parametrize("in_use", [True, False], ids=["in use", "cold"])
async def test_a_broken_checkpoint_is_refused_and_told_and_the_old_one_stays(
    own_registry: Path, images: list[bytes], in_use: bool
) -> None:
    registry = Registry(Storage(str(own_registry)))
    first = registry.best("cat")
    broken = copy_version(own_registry, f"cat/{first}", "cat/v3-broken")
    (broken / "decoders.safetensors").write_bytes(b"nonsense")
    async with serving(own_registry) as served:
        if in_use:
            await served.client.post("/v1/score/cat", content=images[0])
        registry.promote("cat", "v3")
        for _ in range(2):  # told as often as it is looked at, counted once
            await refreshed(served)
        answer = await served.client.post("/v1/score/cat", content=images[0])
        assert answer.json()["checkpoint"] == first
        [cat, *others] = (await served.client.get("/v1/categories")).json()
        assert "damaged" in cat["problem"]
        assert [other["problem"] for other in others] == [None, None]
        assert metric(served, "cflow_ray_checkpoints_refused{") == 1
        assert metric(served, 'cflow_ray_reloads_total{outcome="refused"') == 1
        assert (await served.client.get("/healthz")).json() == {"status": "ok", "reason": None}

        registry.rollback("cat")
        await refreshed(served)
        assert (await served.client.get("/v1/categories")).json()[0]["problem"] is None
        assert metric(served, "cflow_ray_checkpoints_refused{") == 0


async def test_what_is_promoted_is_warm_before_it_takes_over_where_its_category_is_in_use(
    own_registry: Path, images: list[bytes], lite0_state: dict[str, Tensor], photographs: Tensor
) -> None:
    registry = Registry(Storage(str(own_registry)))
    second = registry.versions("cat")[1]
    cold = add_version(registry, "cup", lite0_state, photographs, seed=5)
    async with serving(own_registry) as served:
        await served.client.post("/v1/score/cat", content=images[0])
        registry.promote("cat", second)
        registry.promote("cup", cold)
        await refreshed(served)
        assert await served_versions(served) == {"cat": second, "cup": cold, "rocket": registry.best("rocket")}
        assert served.service._bank.ready(("cat", second)) is not None
        assert "cup" not in [category for category, _ in served.service._bank.loaded]


async def test_a_damaged_pointer_or_missing_version_costs_its_own_category_only(
    own_registry: Path, images: list[bytes]
) -> None:
    registry = Registry(Storage(str(own_registry)))
    second = registry.versions("cat")[1]
    async with serving(own_registry) as served:
        (own_registry / "cup" / "best.json").write_text("nonsense")
        shutil.rmtree(own_registry / "rocket" / registry.best("rocket"))
        (own_registry / "rocket" / "best.json").write_text(json.dumps({"format_version": 1, "version": "v9-gone"}))
        registry.promote("cat", second)
        await refreshed(served)
        cat, cup, rocket = (await served.client.get("/v1/categories")).json()
        assert (cat["checkpoint"], cat["problem"]) == (second, None)
        assert cup["problem"]
        assert rocket["problem"]
        assert (await served.client.post("/v1/score/cup", content=images[0])).status_code == 200


async def test_without_its_registry_a_server_goes_on_with_what_it_has_and_says_so(
    own_registry: Path, images: list[bytes]
) -> None:
    gone = own_registry.with_name("gone")
    async with serving(own_registry) as served:
        before = (await served.client.post("/v1/score/cat", content=images[0])).json()
        own_registry.rename(gone)
        await refreshed(served)
        health = (await served.client.get("/healthz")).json()
        assert health["status"] == "degraded"
        assert str(own_registry) in health["reason"]
        assert metric(served, "cflow_ray_registry_reachable{") == 0
        assert (await served.client.get("/readyz")).status_code == 200
        after = (await served.client.post("/v1/score/cat", content=images[0])).json()
        assert (after["score"], after["checkpoint"]) == (before["score"], before["checkpoint"])
        cold = await served.client.post("/v1/score/rocket", content=images[0])
        assert kind_of(cold) == "unavailable"
        assert int(cold.headers["retry-after"]) >= 1
        detail = await served.client.get("/v1/categories/cat")
        assert kind_of(detail) in ("unavailable", "unknown-category")

        gone.rename(own_registry)
        await refreshed(served)
        assert (await served.client.get("/healthz")).json()["status"] == "ok"
        assert (await served.client.post("/v1/score/rocket", content=images[0])).status_code == 200


async def test_new_categories_are_taken_up_and_a_server_without_any_is_not_ready(
    own_registry: Path, lite0_state: dict[str, Tensor], photographs: Tensor
) -> None:
    registry = Registry(Storage(str(own_registry)))
    for category in ("cat", "cup", "rocket"):
        (own_registry / category / "best.json").rename(own_registry / f"{category}.json")
    async with serving(own_registry) as served:
        assert kind_of(await served.client.get("/readyz")) == "unavailable"
        registry.promote("new", add_version(registry, "new", lite0_state, photographs, seed=5))
        await refreshed(served)
        assert list(await served_versions(served)) == ["new"]
        assert (await served.client.get("/readyz")).status_code == 200


async def test_a_bug_in_one_round_does_not_end_the_following(own_registry: Path) -> None:
    registry = Registry(Storage(str(own_registry)))
    second = registry.versions("cat")[1]
    async with serving(own_registry, reload_seconds=0.001) as served:
        rounds, refresh = 0, served.service.access.refresh

        def failing() -> None:
            nonlocal rounds
            rounds += 1
            assert rounds > 2
            refresh()

        served.service.access.refresh = failing  # type: ignore[method-assign]
        registry.promote("cat", second)
        async with asyncio.timeout(60):
            while rounds < 4 or (await served_versions(served))["cat"] != second:
                await asyncio.sleep(0)
