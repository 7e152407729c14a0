"""The whole API by its own OpenAPI: whatever is sent, the answer is one that the description allows, and no 5xx."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cflow_ray.config import ServeConfig
from cflow_ray.serve.access import make_token
from cflow_ray.serve.api import build_api
from cflow_ray.serve.service import ScoringService
from tests.stores import free_port, wait_for_port

EXAMPLES = 50  # of every operation
SECRET, TOKEN = make_token("fuzz", "score", None)


@pytest.fixture(scope="module")
def url(fitted_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server on a port, in a thread."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    tokens.write_text(f"[{TOKEN.model_dump_json()}]")
    config = ServeConfig(registry=str(fitted_registry), runtime="torch", tokens=str(tokens), max_body_mb=0.1)
    port = free_port()
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        service = ScoringService(config)
        servers.append(uvicorn.Server(uvicorn.Config(build_api(service), port=port, log_level="error")))
        await servers[0].serve()
        await service.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    wait_for_port(port)
    yield f"http://127.0.0.1:{port}"
    servers[0].should_exit = True
    thread.join(60)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_every_answer_is_one_that_the_description_allows(url: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried = set[str]()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case) -> None:
            tried.add(case.operation.label)
            headers = {"Authorization": f"Bearer {SECRET}"}
            response = case.call(headers=headers)
            if response.status_code == 504:  # which is what a client gets that leaves no time
                assert int(case.headers["X-Deadline-Ms"]) < 1000
            else:  # that bytes are accepted is not asked: what is drawn is no image
                case.validate_response(response, headers=headers, excluded_checks=[positive_data_acceptance])

        with suppress(Unsatisfiable):  # what takes no parameter has no wrong one
            ask()
    assert tried >= {"POST /v1/score/{category}", "POST /v1/score", "GET /v1/categories/{category}"}
