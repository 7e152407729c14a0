"""The client against a server on loopback: what it sends and reads, what it tries again, what it tells."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
import tenacity

from cflow_ray.answers import ProblemAnswer, ScoreAnswer
from cflow_ray.client import AsyncClient, Client, ProblemError, UnreachableError, Upload
from cflow_ray.client import calls as api
from cflow_ray.client.tries import Deadline, may_pass, retry_settings
from cflow_ray.errors import ConfigError, ServingError
from tests.client.scripted import ANSWER, DETAIL, HANG_UP, Reply, problem, scripted_server
from tests.stores import free_port

PNG = b"\x89PNG not really"
BUSY = Reply(503, problem(503, "overloaded"), {"Retry-After": "0"})
LARGE = bytes(32 * 2**20)  # more than the buffers of a connection hold


def ask_here(url: str, deadline: float) -> None:
    with Client(url, deadline=deadline) as client:
        client.score("screw", LARGE)


def ask_on_a_loop(url: str, deadline: float) -> None:
    async def ask() -> None:
        async with AsyncClient(url, deadline=deadline) as client:
            await client.score("screw", LARGE)

    asyncio.run(ask())


def test_importing_the_client_imports_neither_torch_nor_ray():
    program = "import sys, cflow_ray.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"httpx", "cflow_ray"} <= set(loaded)
    assert not {"torch", "ray", "numpy", "pyarrow", "fastapi"} & set(loaded)


def test_an_image_is_sent_as_it_is_and_its_verdict_is_typed():
    with (
        scripted_server(Reply(body=ANSWER | {"map_png": b64encode(PNG).decode(), "new": 1})) as server,
        Client(server.url, token="secret", deadline=20) as client,
    ):
        answer = client.score("a b/c", b"image", with_map=True, with_overlay=True, target_fpr=0.01)
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/score/a%20b%2Fc?map=png&overlay=1&target_fpr=0.01")
    assert asked.body == b"image"
    assert asked.headers["Authorization"] == "Bearer secret"
    assert "secret" not in asked.path
    assert 0 < int(asked.headers["X-Deadline-Ms"]) <= 20_000
    assert (answer.score, answer.is_anomaly, answer.regions[0].box) == (0.75, True, (1, 2, 30, 40))
    assert (answer.map_png, answer.overlay_png) == (PNG, None)


def test_a_deadline_of_a_day_is_one_that_the_server_accepts():
    with scripted_server(Reply(body=ANSWER)) as server, Client(server.url, deadline=86_400) as client:
        client.score("screw", b"image")
    assert server.asked[0].headers["X-Deadline-Ms"] == "3600000"


def test_a_map_is_bytes_here_and_base64_in_json():
    answer = ScoreAnswer.model_validate(ANSWER | {"map_png": PNG})
    assert b64encode(PNG).decode() in answer.model_dump_json()
    assert ScoreAnswer.model_validate_json(answer.model_dump_json()) == answer
    with pytest.raises(ValueError, match="map_png"):
        ScoreAnswer.model_validate(ANSWER | {"map_png": "no base64"})


def test_several_images_go_in_one_request_with_their_categories():
    items = [
        {"name": "a.png", "answer": ANSWER, "problem": None},
        {"name": "b.png", "answer": None, "problem": problem(422, "bad-image")},
    ]
    uploads = [Upload("screw", b"1", "a.png"), Upload("screw", b"2", "b.png"), Upload("nut", b"3", "c.png")]
    with scripted_server(Reply(body={"images": items})) as server, Client(server.url) as client:
        first, second = client.score_images(uploads)
    assert first.answer is not None
    assert second.problem is not None
    assert second.problem.kind == "bad-image"
    (asked,) = server.asked
    assert asked.path == "/v1/score"
    parts = [asked.body.index(part) for part in (b"screw", b"a.png", b"b.png", b"nut", b"c.png")]
    assert parts == sorted(parts)
    assert asked.body.count(b'name="category"') == 2


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        (lambda client: client.category("a b"), "GET", "/v1/categories/a%20b", b""),
        (lambda client: client.promote("screw", "v1"), "POST", "/v1/categories/screw/promote", b'{"version":"v1"}'),
        (lambda client: client.rollback("screw"), "POST", "/v1/categories/screw/rollback", b""),
    ],
)
def test_categories_are_shown_and_moved(call: Callable[[Client], Any], method: str, path: str, body: bytes):
    with scripted_server(Reply(body=DETAIL)) as server, Client(f"{server.url}/prefix/") as client:
        detail = call(client)
    assert (detail.thresholds["0.001"], detail.history[0].version) == (None, "v0-aaaaaa")
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == (method, f"/prefix{path}", body)


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        HANG_UP,
        Reply(429, problem(429, "rate-limited"), {"Retry-After": "0"}),
        Reply(502, b"bad gateway"),
        Reply(500, b"Internal Server Error"),
    ],
    ids=lambda reply: str(reply.status),
)
def test_what_passes_is_tried_again(trouble: Reply):
    with scripted_server(trouble, trouble, Reply(body=ANSWER)) as server, Client(server.url) as client:
        assert client.score("screw", b"image").score == 0.75
    assert [asked.body for asked in server.asked] == [b"image"] * 3
    left = [int(asked.headers["X-Deadline-Ms"]) for asked in server.asked]
    assert left == sorted(left, reverse=True)  # the server is told what is left, not the whole anew


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 500])
def test_what_stays_is_told_at_once_with_its_problem(status: int):
    said = problem(status, "some-kind", "this is why", known=["nut", "screw"], request_id="r-1")
    with (
        scripted_server(Reply(status, said)) as server,
        Client(server.url) as client,
        pytest.raises(ProblemError, match=f"{status}.*this is why.*r-1") as caught,
    ):
        client.score("zippr", b"image")
    assert len(server.asked) == 1
    told = caught.value.problem
    assert (told.kind, told.status, told.model_extra) == ("some-kind", status, {"known": ["nut", "screw"]})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_wait_that_would_pass_the_deadline_is_not_begun():
    patient = Reply(503, problem(503, "overloaded", "256 images wait"), {"Retry-After": "3600"})
    with (
        scripted_server(patient) as server,
        Client(server.url, deadline=5) as client,
        pytest.raises(ProblemError, match="256 images wait") as caught,
    ):
        client.score("screw", b"image")
    assert len(server.asked) == 1
    assert caught.value.retry_after == 3600


@pytest.mark.parametrize("slow", ["request", "head", "body"])
@pytest.mark.parametrize("ask", [ask_here, ask_on_a_loop])
def test_the_deadline_holds_for_a_try_whose_bytes_trickle(ask: Callable[[str, float], None], slow: Any):
    """Each of its reads and writes is done in time, so that httpx's own timeouts are never reached."""
    with scripted_server(Reply(body=ANSWER, slow=slow)) as server:
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=r"in \d\.\d s of 0\.5: .*longer deadline") as caught:
            ask(server.url, 0.5)
        assert 0.5 <= time.monotonic() - start < 4
    assert isinstance(caught.value.__cause__, httpx.TimeoutException)


@pytest.mark.parametrize("slow", ["request", "head", "body"])
def test_a_late_try_does_not_outlive_its_client(slow: Any):
    with scripted_server(Reply(body=ANSWER, slow=slow)) as server, pytest.raises(UnreachableError):
        ask_here(server.url, 0.3)
    until = time.monotonic() + 10
    while any(thread.name == "cflow-ray-exchange" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_after_a_late_call_the_next_one_is_answered():
    with (
        scripted_server(Reply(body=ANSWER, slow="body"), Reply(body=ANSWER)) as server,
        Client(server.url, deadline=0.5) as client,
    ):
        with pytest.raises(UnreachableError):
            client.score("screw", b"image")
        assert client.score("screw", b"image").score == 0.75


def test_a_server_that_is_not_there_is_told_with_what_to_do():
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, deadline=0.3) as client, pytest.raises(UnreachableError, match="deadline") as caught:
        client.categories()
    assert url in str(caught.value)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


@pytest.mark.parametrize(("trouble", "tries"), [(BUSY, 1), (HANG_UP, 1), (Reply(429, problem(429, "rate-limited")), 2)])
def test_a_rollback_is_not_done_twice(trouble: Reply, tries: int):
    with scripted_server(trouble, Reply(body=DETAIL)) as server, Client(server.url) as client:
        if tries == 1:
            with pytest.raises((ProblemError, UnreachableError)):
                client.rollback("screw")
        else:
            client.rollback("screw")
    assert len(server.asked) == tries


@pytest.mark.parametrize(
    "reply", [Reply(body={"hello": 1}), Reply(body=b"<html>"), Reply(body=[])], ids=["json", "html", "list"]
)
def test_an_answer_of_another_api_is_told(reply: Reply):
    with (
        scripted_server(reply) as server,
        Client(server.url) as client,
        pytest.raises(ServingError, match="cannot read"),
    ):
        client.score("screw", b"image")


@pytest.mark.parametrize("body", [b"<html><body>gone</body></html>", b"", b'{"status": 1}'])
def test_an_error_that_is_no_problem_json_is_quoted(body: bytes):
    with (
        scripted_server(Reply(404, body)) as server,
        Client(server.url) as client,
        pytest.raises(ProblemError, match="404") as caught,
    ):
        client.categories()
    assert caught.value.problem.detail == (body.decode() or "it gave no reason")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://user:pass@host", ""]
)
def test_a_url_that_is_none_is_misuse(url: str):
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8000"):
        Client(url)


@pytest.mark.parametrize("deadline", [0, -1, float("nan")])
def test_a_deadline_that_is_none_is_misuse(deadline: float):
    with pytest.raises(ConfigError, match="deadline"):
        Client("http://127.0.0.1:1", deadline=deadline)


@pytest.mark.parametrize(
    ("says", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        (None, None),
        ("soon", None),
        (format_datetime(datetime(2020, 1, 1, tzinfo=UTC)), 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(says: str | None, seconds: Any):
    response = httpx.Response(
        503, json=problem(503, "overloaded"), headers={} if says is None else {"Retry-After": says}
    )
    assert ProblemError.of(response).retry_after == seconds


def test_a_date_to_come_is_so_many_seconds_away():
    at = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    response = httpx.Response(503, json=problem(503, "overloaded"), headers={"Retry-After": at})
    assert 3000 < (ProblemError.of(response).retry_after or 0) <= 3600


def test_waits_grow_with_jitter_and_are_no_shorter_than_asked_for():
    wait = retry_settings(api.health(), Deadline(60))["wait"]

    def waits(error: Exception, attempt: int) -> list[float]:
        state = tenacity.RetryCallState(ANY, None, (), {})
        state.set_exception((type(error), error, None))
        state.attempt_number = attempt
        return [wait(state) for _ in range(200)]

    early, late = waits(httpx.ConnectError("refused"), 1), waits(httpx.ConnectError("refused"), 20)
    assert 0 <= min(early) < max(early) <= 0.2 < max(late) <= 5
    asked = ProblemError(ProblemAnswer.model_validate(problem(503, "overloaded")), retry_after=3)
    assert min(waits(asked, 1)) == 3


@pytest.mark.parametrize(
    ("error", "passes"),
    [(httpx.ReadTimeout("slow"), True), (httpx.UnsupportedProtocol("x"), False), (KeyError(), False)],
)
def test_which_failures_may_pass(error: Exception, passes: bool):
    assert may_pass(error, repeatable=True) == passes
    assert not may_pass(error, repeatable=False)


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (lambda client: client.score("screw", b"image", with_map=True), ANSWER),
        (lambda client: client.score_images([Upload("screw", b"image")]), {"images": []}),
        (lambda client: client.categories(), []),
        (lambda client: client.category("screw"), DETAIL),
        (lambda client: client.promote("screw", "v1"), DETAIL),
        (lambda client: client.rollback("screw"), DETAIL),
        (lambda client: client.health(), {"status": "ok", "reason": None}),
    ],
)
def test_the_client_of_an_event_loop_does_the_same(call: Callable[[Any], Any], reply: Any):
    async def awaited(url: str) -> Any:
        async with AsyncClient(url, token="secret") as client:
            found: Awaitable[Any] = call(client)
            return await found

    busy = Reply(429, problem(429, "rate-limited"), {"Retry-After": "0"})
    with (
        scripted_server(busy, Reply(body=reply), busy, Reply(body=reply)) as server,
        Client(server.url, token="secret") as client,
    ):
        here = call(client)
        assert asyncio.run(awaited(server.url)) == here
    sent = [(asked.method, asked.path, asked.headers["Authorization"]) for asked in server.asked]
    assert sent[0] == sent[1] == sent[2] == sent[3]


def test_the_client_of_an_event_loop_tells_where_nobody_answers():
    async def ask() -> None:
        async with AsyncClient(f"http://127.0.0.1:{free_port()}", deadline=0.3) as client:
            await client.health()

    with pytest.raises(UnreachableError):
        asyncio.run(ask())
