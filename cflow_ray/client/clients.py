"""The client for programs that wait for an answer, and the one for programs on an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import tenacity

from cflow_ray import __version__
from cflow_ray.answers import CategoryAnswer, CategoryDetailAnswer, HealthAnswer, ItemAnswer, ScoreAnswer
from cflow_ray.client import calls
from cflow_ray.client.calls import Call, Upload
from cflow_ray.client.exchange import exchange, exchange_on_loop
from cflow_ray.client.tries import Deadline, retry_settings, unreachable
from cflow_ray.errors import ConfigError

Result = TypeVar("Result")

DEADLINE_SECONDS = 30.0
_LONGEST_MS = 3_600_000  # that a server accepts as a deadline


class Client:
    """Asks a server; thread-safe; a context manager that closes its connections.

    Every call has `deadline` seconds for all its tries, which the server is told, too. What may pass - a lost or
    refused connection, 408, 429, 502, 503, 504, the bare 500 of a proxy - is tried again within it, no sooner than
    Retry-After says. Calls raise
    ProblemError where the server says why it refused, UnreachableError where no answer came, ServingError where the
    answer is none of this API.
    """

    def __init__(self, url: str, token: str | None = None, deadline: float = DEADLINE_SECONDS) -> None:
        self.url, self.deadline = _checked(url), Deadline(deadline).seconds
        self._http = httpx.Client(base_url=self.url, headers=_headers(token))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(
        self,
        category: str,
        image: bytes,
        *,
        with_map: bool = False,
        with_overlay: bool = False,
        target_fpr: float | None = None,
    ) -> ScoreAnswer:
        """The verdict on the bytes of an image file, judged at `target_fpr` or at the checkpoint's own rate."""
        return self._call(calls.score(category, image, with_map, with_overlay, target_fpr))

    def score_images(
        self,
        images: Sequence[Upload],
        *,
        with_map: bool = False,
        with_overlay: bool = False,
        target_fpr: float | None = None,
    ) -> tuple[ItemAnswer, ...]:
        """The same for several images in one request, in their order; a bad image costs its own item only."""
        return self._call(calls.score_images(images, with_map, with_overlay, target_fpr)).images

    def categories(self) -> tuple[CategoryAnswer, ...]:
        """What can be scored."""
        return self._call(calls.categories())

    def category(self, name: str) -> CategoryDetailAnswer:
        """A category with its thresholds, versions and history."""
        return self._call(calls.category(name))

    def promote(self, category: str, version: str) -> CategoryDetailAnswer:
        """Make a version answer; needs an admin's token."""
        return self._call(calls.promote(category, version))

    def rollback(self, category: str) -> CategoryDetailAnswer:
        """Make the version answer that was the best before; needs an admin's token."""
        return self._call(calls.rollback(category))

    def health(self) -> HealthAnswer:
        """Whether the server is well."""
        return self._call(calls.health())

    def _call(self, call: Call[Result]) -> Result:
        deadline = Deadline(self.deadline)

        def once() -> Result:
            request = self._http.build_request(call.method, call.path, **_arguments(call, deadline))
            return call.read(exchange(self._http, request, deadline))

        try:
            return tenacity.Retrying(**retry_settings(call, deadline))(once)
        except httpx.TransportError as error:
            raise unreachable(self.url, error, deadline) from error


class AsyncClient:
    """The same on an event loop: every call is awaited."""

    def __init__(self, url: str, token: str | None = None, deadline: float = DEADLINE_SECONDS) -> None:
        self.url, self.deadline = _checked(url), Deadline(deadline).seconds
        self._http = httpx.AsyncClient(base_url=self.url, headers=_headers(token))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def score(
        self,
        category: str,
        image: bytes,
        *,
        with_map: bool = False,
        with_overlay: bool = False,
        target_fpr: float | None = None,
    ) -> ScoreAnswer:
        """See Client.score."""
        return await self._call(calls.score(category, image, with_map, with_overlay, target_fpr))

    async def score_images(
        self,
        images: Sequence[Upload],
        *,
        with_map: bool = False,
        with_overlay: bool = False,
        target_fpr: float | None = None,
    ) -> tuple[ItemAnswer, ...]:
        """See Client.score_images."""
        return (await self._call(calls.score_images(images, with_map, with_overlay, target_fpr))).images

    async def categories(self) -> tuple[CategoryAnswer, ...]:
        """See Client.categories."""
        return await self._call(calls.categories())

    async def category(self, name: str) -> CategoryDetailAnswer:
        """See Client.category."""
        return await self._call(calls.category(name))

    async def promote(self, category: str, version: str) -> CategoryDetailAnswer:
        """See Client.promote."""
        return await self._call(calls.promote(category, version))

    async def rollback(self, category: str) -> CategoryDetailAnswer:
        """See Client.rollback."""
        return await self._call(calls.rollback(category))

    async def health(self) -> HealthAnswer:
        """See Client.health."""
        return await self._call(calls.health())

    async def _call(self, call: Call[Result]) -> Result:
        deadline = Deadline(self.deadline)

        async def once() -> Result:
            request = self._http.build_request(call.method, call.path, **_arguments(call, deadline))
            return call.read(await exchange_on_loop(self._http, request, deadline))

        try:
            return await tenacity.AsyncRetrying(**retry_settings(call, deadline))(once)
        except httpx.TransportError as error:
            raise unreachable(self.url, error, deadline) from error


def _checked(url: str) -> str:
    """A server's address; raises ConfigError where it is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(
            f"{url!r} is no URL: {error}. Give the server's address, e.g. http://127.0.0.1:8000"
        ) from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise ConfigError(
            f"{url!r} is no server's address; allowed is http or https with a host, a port and a path, without a "
            "password (a token has its own argument), e.g. http://127.0.0.1:8000"
        )
    return url


def _headers(token: str | None) -> dict[str, str]:
    own = {"User-Agent": f"cflow-ray/{__version__}", "Accept": "application/json, application/problem+json"}
    return own if token is None else own | {"Authorization": f"Bearer {token}"}


def _arguments(call: Call[Any], deadline: Deadline) -> dict[str, Any]:
    """Keyword arguments of httpx for one try, which may take what is left of the time."""
    left = deadline.left
    headers = {"X-Deadline-Ms": str(min(_LONGEST_MS, max(1, int(left * 1000)))), **call.body.get("headers", {})}
    return {**call.body, "params": call.params, "headers": headers, "timeout": left}
