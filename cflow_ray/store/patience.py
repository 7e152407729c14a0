"""Which failures of a remote store pass by themselves, and for how long they are waited out."""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import fsspec
import tenacity
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 5.0

_STATUSES = {408, 429, 500, 502, 503, 504}
_CODES = {"RequestTimeout", "SlowDown"}  # S3 gives the first with status 400

_LASTING = (
    FileNotFoundError,
    PermissionError,
    ConnectionRefusedError,  # nothing listens: more often a wrong address than a server that starts again
    socket.gaierror,  # a host name that does not resolve
)
_PASSING = (
    TimeoutError,
    ConnectionError,
    ssl.SSLEOFError,  # the connection ended within the TLS handshake
    http.client.IncompleteRead,
    ConnectionClosedError,
    ConnectTimeoutError,
    ReadTimeoutError,
    IncompleteReadError,
    ResponseStreamingError,
    ResponseParserError,  # half an answer, or a proxy's page in place of one
    aiohttp.ClientPayloadError,  # a body that ends before its length; s3fs lets it through as it is
    aiohttp.ServerDisconnectedError,
)

Result = TypeVar("Result")


class StillFailingError(OSError):
    """What had to pass did not while patience lasted; the cause is the last failure."""


@dataclass(frozen=True)
class Patience:
    """How long an operation is tried again while it fails as a store in trouble does.

    The waits between tries are drawn from 0 to a bound that doubles (0.2 s in the mean at first) up to 5 s, so that
    many workers do not come back at once.
    """

    seconds: float = PATIENCE_SECONDS
    """Counted from the first try; a try that has begun is not cut off."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def call(self, where: str, operation: Callable[[], Result]) -> Result:
        """What the operation gives at last; `where` names the place in the log.

        A failure that lasts is raised at once as it is; one that outlasts patience raises StillFailingError.
        """
        start = self.clock()
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(multiplier=2 * _FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
            stop=lambda _: self.clock() - start >= self.seconds,
            sleep=self.sleep,
            before_sleep=lambda state: _tell(where, state),
        )
        try:
            return tries(operation)
        except tenacity.RetryError as spent:
            error = spent.last_attempt.exception()
            tried = f"tried for {self.clock() - start:.0f} s"
            raise StillFailingError(f"{describe(error)} ({tried})") from error


def is_transient(error: BaseException) -> bool:
    """Whether a failure may pass by itself: the store's own trouble, or a connection lost on the way.

    aiobotocore gives a reset connection, a refused one and an unknown host the same EndpointConnectionError, and s3fs
    gives most answers an OSError; the first of its causes that says more decides.
    """
    for one in _with_causes(error):
        if isinstance(one, ClientError):
            status = one.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status in _STATUSES or one.response.get("Error", {}).get("Code") in _CODES
        if isinstance(one, aiohttp.ClientResponseError):
            return one.status in _STATUSES
        if isinstance(one, _LASTING):
            return False
        if isinstance(one, _PASSING):
            return True
    return False


def describe(error: BaseException | None) -> str:
    """A failure on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def leave_tries_to_botocore(file_system: fsspec.AbstractFileSystem) -> None:
    """Of its own s3fs tries a read up to 25 times over botocore's tries: a quarter of an hour where requests hang."""
    file_system.retries = 1


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tell(where: str, state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None
    log.warning("%s: %s; trying again in %.1f s", where, describe(state.outcome.exception()), state.upcoming_sleep)
