"""Patience: what passes is waited out for so long and no longer, what lasts is told at once."""

from __future__ import annotations

import http.client
import logging
import pickle
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from cflow_ray.store.patience import PATIENCE_SECONDS, Patience, StillFailingError, is_transient


@dataclass
class Clock:
    """Time that passes only where someone sleeps."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def patience(self, seconds: float = PATIENCE_SECONDS) -> Patience:
        return Patience(seconds, self.sleep, self)


def failing_with(errors: Iterable[Exception], then: str = "done") -> Callable[[], str]:
    """An operation that fails with each of the errors once and then succeeds."""
    left = iter(errors)

    def operation() -> str:
        for error in left:
            raise error
        return then

    return operation


def answer(status: int, code: str) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "why"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")


def caused(error: Exception, *causes: BaseException) -> Exception:
    """An error raised while the next was handled, and so on."""
    last: BaseException = error
    for cause in causes:
        last.__context__ = cause
        last = cause
    return error


def cannot_connect(reason: OSError) -> Exception:
    """How aiobotocore tells that no connection came about."""
    key: Any = ConnectionKey("host", 80, False, True, None, None, None)
    return caused(
        EndpointConnectionError(endpoint_url="http://host"), aiohttp.ClientConnectorError(key, reason), reason
    )


def refusal_over_http(status: int) -> aiohttp.ClientResponseError:
    """How fsspec's http file system tells of an answer."""
    url = URL("http://host/file")
    return aiohttp.ClientResponseError(
        aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url), (), status=status
    )


PASSING = [
    *(
        translate_boto_error(answer(*status_and_code))
        for status_and_code in [
            (429, "TooManyRequests"),
            (500, "InternalError"),
            (502, "502"),
            (503, "SlowDown"),
            (503, "ServiceUnavailable"),
            (504, "504"),
            (400, "RequestTimeout"),
        ]
    ),
    answer(503, "503"),
    ReadTimeoutError(endpoint_url="http://host"),
    ConnectTimeoutError(endpoint_url="http://host"),
    ConnectionClosedError(endpoint_url="http://host"),
    caused(
        EndpointConnectionError(endpoint_url="http://host"),
        aiohttp.ClientOSError(104, "Connection reset by peer"),
        ConnectionResetError(104, "Connection reset by peer"),
    ),
    cannot_connect(ssl.SSLEOFError(8, "EOF occurred in violation of protocol")),
    cannot_connect(ConnectionResetError(104, "Connection reset by peer")),
    aiohttp.ClientPayloadError("Response payload is not completed"),
    aiohttp.ServerDisconnectedError(),
    refusal_over_http(503),
    TimeoutError(),
    http.client.IncompleteRead(b"half"),
]

LASTING = [
    *(
        translate_boto_error(answer(*status_and_code))
        for status_and_code in [
            (404, "NoSuchKey"),
            (404, "NoSuchBucket"),
            (403, "AccessDenied"),
            (403, "InvalidAccessKeyId"),
            (403, "SignatureDoesNotMatch"),
            (400, "400"),
            (416, "InvalidRange"),
            (501, "NotImplemented"),
        ]
    ),
    FileNotFoundError("nowhere"),
    PermissionError("closed"),
    IsADirectoryError("a folder"),
    cannot_connect(ConnectionRefusedError(111, "Connect call failed")),
    cannot_connect(socket.gaierror(-2, "Name or service not known")),
    cannot_connect(ssl.SSLCertVerificationError(1, "certificate verify failed")),
    refusal_over_http(404),
    NoCredentialsError(),
    ValueError("a bug"),
    TypeError("an option that is none"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_waited_out(error: Exception) -> None:
    clock = Clock()
    assert is_transient(error)
    assert clock.patience().call("s3://bucket/file", failing_with([error] * 3)) == "done"
    assert len(clock.slept) == 3


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_raised_at_once_as_it_is(error: Exception) -> None:
    clock = Clock()
    assert not is_transient(error)
    with pytest.raises(type(error)) as caught:
        clock.patience().call("s3://bucket/file", failing_with([error]))
    assert caught.value is error
    assert clock.slept == []


def test_what_lasts_after_what_passed_is_raised_as_it_is() -> None:
    clock = Clock()
    with pytest.raises(FileNotFoundError, match="gone"):
        clock.patience().call("s3://bucket/file", failing_with([TimeoutError(), FileNotFoundError("gone")]))
    assert len(clock.slept) == 1


def test_patience_ends_and_says_how_long_it_was() -> None:
    clock = Clock()
    error = translate_boto_error(answer(503, "SlowDown"))
    with pytest.raises(StillFailingError, match=r"why \(tried for 6\d s\)") as caught:
        clock.patience().call("s3://bucket/file", failing_with([error] * 1000))
    assert caught.value.__cause__ is error
    assert PATIENCE_SECONDS <= clock.now - 1000 <= PATIENCE_SECONDS + 5


def test_waits_grow_from_a_fraction_of_a_second_to_five_and_differ() -> None:
    firsts, all_waits = [], []
    for _ in range(50):
        clock = Clock()
        with pytest.raises(StillFailingError):
            clock.patience().call("s3://bucket/file", failing_with([TimeoutError()] * 1000))
        firsts.append(clock.slept[0])
        all_waits.append(clock.slept)
    assert max(firsts) <= 0.4
    assert len(set(firsts)) == len(firsts)
    assert all(0 <= wait <= min(5.0, 0.4 * 2**tries) for waits in all_waits for tries, wait in enumerate(waits))
    assert max(max(waits) for waits in all_waits) > 4


def test_each_new_try_is_logged_with_the_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cflow_ray"):
        Clock().patience().call("s3://bucket/file", failing_with([TimeoutError("too slow")] * 2))
    assert len(caplog.messages) == 2
    assert all(message.startswith("s3://bucket/file: too slow; trying again in ") for message in caplog.messages)


def test_patience_can_be_sent_to_a_worker() -> None:
    assert pickle.loads(pickle.dumps(Patience())) == Patience()
