"""A registry and tokens on S3, which is in trouble for a while."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import cflow_ray.serve.access
import cflow_ray.serve.service
from cflow_ray.serve.access import make_token
from cflow_ray.store.patience import Patience
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.ray.fault_proxy import Fault, FaultProxy
from tests.serving import kind_of, serving
from tests.stores import Place, upload

pytestmark = [pytest.mark.anyio, pytest.mark.s3]


@pytest.mark.parametrize("fault", [503, 403])
async def test_a_server_goes_on_without_its_store_and_follows_it_again_afterwards(
    fitted_registry: Path, images: list[bytes], moto: Place, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cflow_ray.serve.service, "_PATIENCE", Patience(seconds=0.5))
    monkeypatch.setattr(cflow_ray.serve.access, "_PATIENCE", Patience(seconds=0.5))
    root = upload(fitted_registry, moto, f"registry-{fault}", ["."])
    secret, token = make_token("line", "score", None)
    Storage(root, moto.options).write("tokens.yaml", f"[{token.model_dump_json()}]".encode())
    registry = Registry(Storage(root, moto.options))
    first, second = registry.versions("cat")
    port = urlsplit(moto.options["endpoint_url"]).port
    assert port is not None
    with FaultProxy(port) as proxy:
        options = moto.options | {"endpoint_url": proxy.endpoint}
        settings = {"storage_options": options, "tokens": f"{root}/tokens.yaml"}
        async with serving(root, **settings) as served:
            headers = {"Authorization": f"Bearer {secret}"}

            async def checkpoint() -> str:
                answer = await served.client.post("/v1/score/cat", content=images[0], headers=headers)
                assert answer.status_code == 200, answer.text
                return answer.json()["checkpoint"]

            async def refresh() -> str:
                for what in (served.service.checkpoints, served.service.access):
                    await asyncio.to_thread(what.refresh)
                return (await served.client.get("/healthz")).json()["status"]

            assert await checkpoint() == first
            registry.promote("cat", second)
            proxy.disturb(fault)
            assert await refresh() == "degraded"
            assert await checkpoint() == first
            cold = await served.client.post("/v1/score/cup", content=images[0], headers=headers)
            assert kind_of(cold) == "unavailable"
            proxy.heal()
            assert await refresh() == "ok"
            assert await checkpoint() == second
            warm = await served.client.post("/v1/score/cup", content=images[0], headers=headers)
            assert warm.status_code == 200
    assert proxy.harmed[fault]
