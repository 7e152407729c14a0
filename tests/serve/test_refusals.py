"""What is refused, as problem details: each kind with its status, and nothing without one."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image

from cflow_ray.serve.envelope import REQUEST_ID
from cflow_ray.serve.problems import KINDS
from tests.serving import Served, files, kind_of, serving

pytestmark = pytest.mark.anyio


def large_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("method", "path", "content", "kind", "says"),
    [
        ("POST", "/v1/score/zippr", b"x", "unknown-category", "cup"),
        ("GET", "/v1/categories/zippr", b"", "unknown-category", "cup"),
        ("POST", "/v1/score/cat", b"", "bad-image", "empty"),
        ("POST", "/v1/score/cat", b"no image", "bad-image", "known format"),
        ("POST", "/v1/score/cat", bytes(300_000), "too-large", "0.2 MB"),
        ("POST", "/v1/score/cat", large_png(500, 401), "too-large", "200000"),
        ("GET", "/v1/nothing", b"", "not-found", "/v1/nothing"),
        ("GET", "/nothing", b"", "not-found", ""),
        ("GET", "/docs", b"", "not-found", ""),
        ("DELETE", "/v1/score/cat", b"", "method-not-allowed", "DELETE"),
        ("POST", "/v1/score", b"x", "unsupported-media", "path"),
    ],
)
async def test_each_refusal_has_its_kind(
    served: Served, method: str, path: str, content: bytes, kind: str, says: str
) -> None:
    answer = await served.client.request(method, path, content=content)
    assert kind_of(answer) == kind
    assert answer.status_code == KINDS[kind].status
    assert says in answer.json()["detail"]


async def test_an_unknown_category_is_told_the_known_ones(served: Served) -> None:
    assert (await served.client.post("/v1/score/zippr")).json()["known"] == ["cat", "cup", "rocket"]


@pytest.mark.parametrize("media_type", ["text/html", "application/json", "video/mp4", "multipart/mixed; boundary=x"])
async def test_what_is_no_image_is_refused_before_it_is_read(served: Served, media_type: str) -> None:
    answer = await served.client.post("/v1/score/cat", content=b"{}", headers={"content-type": media_type})
    assert kind_of(answer) == "unsupported-media"


async def test_a_body_that_grows_too_large_is_refused_on_the_way(served: Served) -> None:
    sent = 0

    async def parts():
        nonlocal sent
        for _ in range(100):
            sent += 50_000
            yield bytes(50_000)

    answer = await served.client.post("/v1/score/cat", content=parts())
    assert kind_of(answer) == "too-large"
    assert sent < 1_000_000


@pytest.mark.parametrize("count", [5, 1000])
async def test_more_images_than_are_allowed_are_refused(served: Served, count: int) -> None:
    answer = await served.client.post("/v1/score/cat", files=files([b"x"] * count))
    assert kind_of(answer) == "too-large"
    assert "4 images" in answer.json()["detail"]


async def test_no_other_site_s_page_may_ask(served: Served) -> None:
    origin = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    for answer in (
        await served.client.options("/v1/score/cat", headers=origin),
        await served.client.get("/v1/categories", headers=origin),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_request_keeps_its_id_or_gets_one(served: Served) -> None:
    given = await served.client.get("/healthz", headers={REQUEST_ID: "line-3.cam_1"})
    assert given.headers[REQUEST_ID] == "line-3.cam_1"
    for odd in ("two words", "x" * 65, "<script>", ""):
        made = await served.client.post("/v1/score/zippr", headers={REQUEST_ID: odd})
        assert made.headers[REQUEST_ID] != odd
        kind_of(made)


async def test_a_bug_is_answered_and_the_server_goes_on(fitted_registry: Path, images: list[bytes]) -> None:
    async with serving(fitted_registry) as served:
        served.service.metrics.scores = None  # type: ignore[assignment]  # the bug
        assert kind_of(await served.client.post("/v1/score/cat", content=images[0])) == "internal"
        several = await served.client.post("/v1/score/cat", files=files(images[:2]))
        assert kind_of(several) == "internal"
        assert (await served.client.get("/healthz")).status_code == 200
        assert served.service.room.taken == 0


async def test_a_body_that_does_not_arrive_is_given_up(fitted_registry: Path, images: list[bytes]) -> None:
    never = asyncio.Event()

    async def half(start: bytes):
        yield start + images[0][:100]
        await never.wait()

    async with serving(fitted_registry, body_seconds=0.1) as served:
        assert kind_of(await served.client.post("/v1/score/cat", content=half(b""))) == "timeout"
        part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        boundary = {"content-type": "multipart/form-data; boundary=b"}
        assert kind_of(await served.client.post("/v1/score/cat", content=half(part), headers=boundary)) == "timeout"
        assert served.service.room.taken == 0


@pytest.mark.parametrize("given", ["0", "-1", "soon", "1e3"])
async def test_a_deadline_is_a_positive_number(served: Served, images: list[bytes], given: str) -> None:
    answer = await served.client.post("/v1/score/cat", content=images[0], headers={"X-Deadline-Ms": given})
    assert kind_of(answer) == "invalid-request"
    assert "Deadline" in answer.json()["detail"]
