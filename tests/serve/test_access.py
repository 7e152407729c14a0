"""Who is let in: tokens by hash, role, rate and file, and loopback alone without any."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from cflow_ray.cli import main
from cflow_ray.config import ServeConfig
from cflow_ray.errors import CflowRayError, ConfigError
from cflow_ray.serve import Server
from cflow_ray.serve.access import HAPROXY, VARIABLE, Access, is_loopback, make_token, read_tokens
from cflow_ray.serve.problems import ProblemError
from tests.serving import kind_of, serving

pytestmark = pytest.mark.anyio

OPEN = ("/healthz", "/readyz", "/openapi.json")
CLOSED = ("/v1/categories", "/v1/categories/cat", "/metrics")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def write(path: Path, *made: tuple[str, object]) -> Path:
    path.write_text(json.dumps([token.model_dump() for _, token in made]))  # type: ignore[attr-defined]
    return path


async def test_with_tokens_only_their_holders_are_let_in(
    fitted_registry: Path, images: list[bytes], tmp_path: Path
) -> None:
    line, other = make_token("line-3", "score", None), make_token("other", "score", None)
    async with serving(fitted_registry, client="10.0.0.9", tokens=write(tmp_path / "tokens.yaml", line)) as served:
        for path in OPEN:
            assert (await served.client.get(path)).status_code == 200
        for headers in ({}, bearer(other[0]), bearer(""), bearer(line[1].sha256), {"Authorization": line[0]}):
            for path in CLOSED:
                assert kind_of(await served.client.get(path, headers=headers)) == "unauthorized"
            refused = await served.client.post("/v1/score/cat", content=images[0], headers=headers)
            assert kind_of(refused) == "unauthorized"
            assert refused.headers["www-authenticate"] == "Bearer"
        for path in CLOSED:
            assert (await served.client.get(path, headers=bearer(line[0]))).status_code == 200
        answer = await served.client.post("/v1/score/cat", content=images[0], headers=bearer(line[0]))
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/score/cat", "/v1/score", "/v1/categories/cat/promote"])
async def test_nobody_s_body_is_read(fitted_registry: Path, path: str) -> None:
    async def endless():
        yield b"{"
        raise AssertionError("read on")

    async with serving(fitted_registry, client="10.0.0.9") as served:
        assert kind_of(await served.client.post(path, content=endless())) == "unauthorized"


@pytest.mark.parametrize("client", ["10.0.0.9", "192.168.1.1", "::ffff:10.0.0.9", "testclient"])
async def test_without_tokens_only_this_machine_is_answered(fitted_registry: Path, client: str) -> None:
    async with serving(fitted_registry, client=client) as served:
        assert kind_of(await served.client.get("/v1/categories")) == "unauthorized"
        assert (await served.client.get("/healthz")).status_code == 200
    async with serving(fitted_registry) as served:
        assert (await served.client.get("/v1/categories")).status_code == 200
        assert kind_of(await served.client.post("/v1/categories/cat/rollback")) == "forbidden"


async def test_a_token_is_revoked_and_added_without_a_restart(fitted_registry: Path, tmp_path: Path) -> None:
    first, second = make_token("first", "score", None), make_token("second", "score", None)
    path = write(tmp_path / "tokens.yaml", first)
    async with serving(fitted_registry, tokens=path, reload_seconds=0.001) as served:

        async def status(secret: str) -> int:
            return (await served.client.get("/v1/categories", headers=bearer(secret))).status_code

        assert (await status(first[0]), await status(second[0])) == (200, 401)
        write(path, second)
        async with asyncio.timeout(60):
            while (await status(first[0]), await status(second[0])) != (401, 200):
                await asyncio.sleep(0)
        path.write_text("- nonsense")
        async with asyncio.timeout(60):
            while (await served.client.get("/healthz")).json()["status"] != "degraded":
                await asyncio.sleep(0)
        assert (await status(first[0]), await status(second[0])) == (401, 200)
        path.write_text("")  # nobody, not everybody
        async with asyncio.timeout(60):
            while await status(second[0]) != 401:
                await asyncio.sleep(0)
        assert kind_of(await served.client.get("/v1/categories")) == "unauthorized"


async def test_promotion_and_rollback_need_an_admin(own_registry: Path, images: list[bytes], tmp_path: Path) -> None:
    line, boss = make_token("line", "score", None), make_token("boss", "admin", None)
    tokens = write(tmp_path / "tokens.yaml", line, boss)
    async with serving(own_registry, tokens=tokens, max_body_mb=0.5) as served:

        async def move(what: str, secret: str, **body: object) -> dict[str, object]:
            answer = await served.client.post(f"/v1/categories/cat/{what}", headers=bearer(secret), **body)
            return answer.json() | {"status": answer.status_code}

        detail = (await served.client.get("/v1/categories/cat", headers=bearer(line[0]))).json()
        first, second = detail["versions"]
        assert (detail["checkpoint"], [entry["version"] for entry in detail["history"]]) == (first, [first])
        assert detail["history"][0]["promoted_at"]
        assert detail["thresholds"]["0.05"] == pytest.approx(0.8 - 0.7 / 38)
        assert detail["thresholds"]["0.01"] is None

        assert (await move("promote", line[0], json={"version": "v2"}))["status"] == 403
        assert (await move("rollback", line[0]))["status"] == 403
        moved = await move("promote", boss[0], json={"version": "v2"})
        assert (moved["checkpoint"], [entry["version"] for entry in moved["history"]]) == (second, [second, first])
        answer = await served.client.post("/v1/score/cat", content=images[0], headers=bearer(line[0]))
        assert answer.json()["checkpoint"] == second
        assert (await move("rollback", boss[0]))["checkpoint"] == first
        for what, body in (
            ("promote", {"json": {"version": "v9"}}),
            ("promote", {"json": {"version": "../cup/v1"}}),
            ("promote", {"json": {}}),
            ("rollback", {}),
        ):
            refused = await move(what, boss[0], **body)
            assert refused["type"] == "urn:cflow-ray:problem:invalid-request"
        large = await move("promote", boss[0], content=b'{"version": "' + bytes(2**20))
        assert large["type"] == "urn:cflow-ray:problem:too-large"
        (own_registry / "cat" / second / "decoders.safetensors").write_bytes(b"nonsense")
        served.service._bank._detectors.clear()
        assert "damaged" in str((await move("promote", boss[0], json={"version": "v2"}))["detail"])
        assert (await move("promote", boss[0], json={"version": "v1"}))["checkpoint"] == first


def test_a_rate_lets_a_second_s_worth_through_and_says_when_to_come_back(tmp_path: Path) -> None:
    now = 0.0
    limited, free = make_token("limited", "score", 2), make_token("free", "score", None)
    config = ServeConfig(registry="r", tokens=write(tmp_path / "tokens.yaml", limited, free))
    access = Access(config, {}, clock=lambda: now)
    for _ in range(2):
        access.caller(limited[0], None)
    with pytest.raises(ProblemError) as refused:
        access.caller(limited[0], None)
    assert (refused.value.kind, refused.value.retry_after) == ("rate-limited", 1)
    for _ in range(100):
        access.caller(free[0], None)
    now = 0.5
    access.caller(limited[0], None)
    with pytest.raises(ProblemError):
        access.caller(limited[0], None)
    now = 1000.0
    access.refresh()  # which keeps count
    for _ in range(2):
        access.caller(limited[0], None)
    with pytest.raises(ProblemError):
        access.caller(limited[0], None)


async def test_who_asks_too_often_is_told_when_to_come_back(fitted_registry: Path, tmp_path: Path) -> None:
    line = make_token("line-3", "score", 0.001)
    async with serving(fitted_registry, tokens=write(tmp_path / "tokens.yaml", line)) as served:
        assert (await served.client.get("/v1/categories", headers=bearer(line[0]))).status_code == 200
        refused = await served.client.get("/v1/categories", headers=bearer(line[0]))
        assert kind_of(refused) == "rate-limited"
        assert refused.status_code == 429
        assert 990 < int(refused.headers["retry-after"]) <= 1000


@pytest.mark.parametrize("what", ["promote", "rollback"])
async def test_a_request_takes_one_turn_on_an_administrator_s_route_too(
    own_registry: Path, tmp_path: Path, what: str
) -> None:
    boss, line = make_token("boss", "admin", 0.001), make_token("line", "score", 0.001)
    async with serving(own_registry, tokens=write(tmp_path / "tokens.yaml", boss, line)) as served:

        async def move(secret: str) -> str:
            body = {"version": "v9"}  # which is none, and neither is there an earlier one
            return kind_of(await served.client.post(f"/v1/categories/cat/{what}", headers=bearer(secret), json=body))

        assert [await move(boss[0]), await move(boss[0])] == ["invalid-request", "rate-limited"]
        assert [await move(line[0]), await move(line[0])] == ["forbidden", "rate-limited"]


def test_tokens_of_environment_and_file_add_up(tmp_path: Path) -> None:
    held, filed = make_token("held", "admin", None), make_token("filed", "score", None)
    environment = {VARIABLE: json.dumps([held[1].model_dump()])}
    access = Access(ServeConfig(registry="r", tokens=write(tmp_path / "t", filed)), environment)
    assert [access.caller(secret, None).name for secret in (held[0], filed[0])] == ["held", "filed"]
    alone = Access(ServeConfig(registry="r"), environment)
    with pytest.raises(ProblemError):
        alone.caller(None, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {name: a}", "sha256"),
        ("- {name: a, sha256: short}", "sha256"),
        ("- {name: a b, sha256: " + "a" * 64 + "}", "name"),
        ("- {name: a, sha256: " + "a" * 64 + ", role: king}", "role"),
        ("- {name: a, sha256: " + "a" * 64 + ", rate: 0}", "rate"),
        ("- {name: a, sha256: " + "a" * 64 + ", token: secret}", "token"),
        ("- {name: a, sha256: " + "a" * 64 + "}\n- {name: a, sha256: " + "b" * 64 + "}", "same name"),
        ("name: a", "tuple"),
        ("[", "YAML"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_tokens(text, "tokens.yaml")


def test_the_command_makes_an_entry_that_lets_its_secret_in(tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["token", "line-3", "--role", "admin", "--rate", "5"])
    assert made.exit_code == 0, made.output
    secret = made.stderr.strip().rpartition(" ")[2]
    assert secret not in made.stdout
    path = tmp_path / "tokens.yaml"
    path.write_text(made.stdout + CliRunner().invoke(main, ["token", "line-4"]).stdout)
    caller = Access(ServeConfig(registry="r", tokens=path), {}).caller(secret, None)
    assert (caller.name, caller.role) == ("line-3", "admin")
    assert CliRunner().invoke(main, ["token", "line 3"]).exit_code == 2
    as_json = CliRunner().invoke(main, ["token", "line-5", "--json"])
    assert json.loads(as_json.stdout).keys() == {"token", "entry"}


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.9", "::"])
def test_a_host_that_others_reach_needs_tokens(fitted_registry: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--tokens"):
        Server(ServeConfig(registry=str(fitted_registry), host=host))


def test_a_server_with_damaged_tokens_does_not_start(fitted_registry: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.yaml").write_text("- nonsense")
    for tokens in (tmp_path / "tokens.yaml", tmp_path / "missing.yaml"):
        with pytest.raises(CflowRayError, match=tokens.name):
            Server(ServeConfig(registry=str(fitted_registry), host="0.0.0.0", tokens=tokens))


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("::ffff:127.0.0.1", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.9", "::ffff:10.0.0.9", "example", "", None)],
)
def test_which_addresses_are_this_machine_s(host: str | None, own: bool) -> None:
    assert is_loopback(host) == own


async def test_the_access_log_names_who_asked_what_and_nothing_of_the_image(
    fitted_registry: Path, images: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = make_token("line-3", "score", None)
    caplog.set_level(logging.INFO, "cflow_ray.access")
    async with serving(fitted_registry, tokens=write(tmp_path / "tokens.yaml", line)) as served:
        headers = bearer(line[0]) | {"X-Request-Id": "r-1"}
        await served.client.post("/v1/score/cat", content=images[0], headers=headers)
        await served.client.post("/v1/score/a%0Ab", content=images[0])
    good, bad = (json.loads(record.getMessage()) for record in caplog.records if record.name == "cflow_ray.access")
    assert good.keys() == {"request_id", "token", "method", "path", "status", "ms"}
    assert (good["request_id"], good["token"], good["status"]) == ("r-1", "line-3", 200)
    assert (bad["token"], bad["status"], bad["path"]) == ("-", 401, "/v1/score/a\nb")
    assert line[0] not in caplog.text
    assert "PNG" not in caplog.text


def test_behind_haproxy_which_hides_who_a_client_is_tokens_are_needed(tmp_path: Path) -> None:
    open_to_all = ServeConfig(registry=str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs tokens.*--tokens"):
        Access(open_to_all, {HAPROXY: "1"})
    assert Access(open_to_all, {HAPROXY: "0"}).caller(None, "127.0.0.1").role == "score"
    secret, token = make_token("line-3", "score", None)
    closed = Access(open_to_all, {HAPROXY: "1", VARIABLE: json.dumps([token.model_dump()])})
    assert closed.caller(secret, "127.0.0.1").name == "line-3"
    with pytest.raises(ProblemError):
        closed.caller(None, "127.0.0.1")
