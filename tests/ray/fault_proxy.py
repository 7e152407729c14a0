"""A small HTTP proxy on loopback that misbehaves when told to: what stands between a test and its object store."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Fault = int | str
"""A status to answer with, or one of:

- `hang`: never answer, even once the trouble is over; the connection ends when the client gives up
- `reset`: reset the connection before the request reaches the server
- `short`: carry the request out, then close in the middle of the answer
"""

HANG, RESET, SHORT = "hang", "reset", "short"

_CODES = {403: "AccessDenied", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}
_ONE_CONNECTION_ONLY = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class _Trouble:
    faults: Sequence[Fault]
    share: float
    draws: random.Random
    seconds: float
    first: str
    end: float | None = None
    """When it is over; None before it began."""

    def harms(self, request: str) -> bool:
        """Whether a request that comes in now is one of the share; the first that is meant begins the trouble."""
        if self.end is None and self.first in request:
            self.end = time.monotonic() + self.seconds
        return self.end is not None and time.monotonic() < self.end and self.draws.random() < self.share


class FaultProxy:
    """Passes requests on to a port of this machine, Host header and all; between `disturb` and `heal` it does harm.

    `requests` counts what came in, by method and path, `harmed` each fault that was done.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.requests: Counter[str] = Counter()
        self.harmed: Counter[Fault] = Counter()
        self.closed = threading.Event()
        self._troubles: list[_Trouble] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """The URL to use in place of the server's."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def disturb(
        self, *faults: Fault, share: float = 1.0, seconds: float = float("inf"), seed: int = 0, first: str = ""
    ) -> None:
        """Do one of the faults, drawn from `seed`, to this share of the requests; to the rest, none.

        It begins with the next request (`GET /bucket/key`) that has `first` in it. Several troubles may lie ahead.
        """
        with self._lock:
            self._troubles.append(_Trouble(faults, share, random.Random(seed), seconds, first))

    def heal(self) -> None:
        """Do no more harm."""
        with self._lock:
            self._troubles.clear()

    def draw(self, request: str) -> Fault | None:
        """What is to be done to a request that has just come in."""
        with self._lock:
            self.requests[request] += 1
            trouble = next((trouble for trouble in self._troubles if trouble.harms(request)), None)
            if trouble is None:
                return None
            fault = trouble.draws.choice(trouble.faults)
            self.harmed[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # connections that clients keep open would hold up the end

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that gives up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_any(self) -> None:
        """One request, in or out of trouble."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.server.proxy.draw(f"{self.command} {self.path}"):
            case int(status):
                self._refuse(status)
            case "hang":
                self._hang()
            case "reset":
                self._reset()
            case "short":
                self._pass_on(body, whole=False)
            case _:
                self._pass_on(body, whole=True)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _refuse(self, status: int) -> None:
        code = _CODES.get(status)
        content = b"" if code is None else f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], content, len(content))

    def _hang(self) -> None:
        self.close_connection = True
        while not self.server.proxy.closed.is_set():
            if select.select([self.connection], [], [], 0.05)[0]:  # nothing more is due but the client's end
                return

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # takes effect once the handler's files are closed too

    def _pass_on(self, body: bytes, whole: bool) -> None:
        upstream = HTTPConnection("127.0.0.1", self.server.proxy.target, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":  # this proxy has told the client to continue
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        headers = [pair for pair in answer.getheaders() if pair[0].lower() not in _ONE_CONNECTION_ONLY]
        kept = content if whole else content[: len(content) // 2]
        self.close_connection = self.close_connection or not whole
        if whole or len(content) > 1:
            self._answer(answer.status, headers, kept, _length(answer, content))
        else:
            self.wfile.write(b"HTTP/1.1 200 O")

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _length(answer: HTTPResponse, content: bytes) -> int:
    """Bytes of the body that an answer speaks of; that to a HEAD has none."""
    return int(answer.getheader("Content-Length") or len(content))
