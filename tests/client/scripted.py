"""A server on loopback that answers what a test wrote down, in that order, and keeps what it was asked."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, BinaryIO, Literal

ANSWER = {
    "category": "screw",
    "checkpoint": "v1-abcdef",
    "score": 0.75,
    "p_value": 0.02,
    "is_anomaly": True,
    "threshold": 0.5,
    "regions": [{"box": [1, 2, 30, 40], "area": 12.5, "peak": 0.875}],
    "width": 64,
    "height": 48,
    "timings": {"read_ms": 0.1, "decode_ms": 1, "wait_ms": 0, "model_ms": 20, "judge_ms": 0.5},
}
DETAIL = {
    "category": "screw",
    "checkpoint": "v1-abcdef",
    "input_size": [64, 64],
    "target_fpr": 0.05,
    "metrics": {"image_auroc": 0.99, "pixel_auroc": None},
    "problem": None,
    "thresholds": {"0.05": 0.5, "0.001": None},
    "history": [{"version": "v0-aaaaaa"}],
    "versions": ["v0-aaaaaa", "v1-abcdef"],
}


def problem(status: int, kind: str, detail: str = "so it is", **more: Any) -> dict[str, Any]:
    return {"type": f"urn:cflow-ray:problem:{kind}", "title": kind, "status": status, "detail": detail, **more}


@dataclass(frozen=True)
class Reply:
    """An answer of the script; one without status hangs up. What is `slow` goes piece by piece, in seconds by the dozen."""

    status: int | None = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    slow: Literal["request", "head", "body"] | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


HANG_UP = Reply(status=None)
_PAUSE = 0.05  # seconds between the pieces of what is slow
_PIECE = 2**18  # bytes of a slow request


class _Trickle(io.BytesIO):
    """Passes every byte on alone, with a pause after it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, content: Any) -> int:
        for byte in bytes(content):
            self._stream.write(bytes([byte]))
            self._stream.flush()
            time.sleep(_PAUSE)
        return len(content)


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class ScriptedServer:
    """Its `url`, and what was `asked` so far."""

    def __init__(self, url: str, replies: list[Reply]) -> None:
        self.url = url
        self.replies = replies
        self.asked: list[Asked] = []


@contextmanager
def scripted_server(*replies: Reply) -> Iterator[ScriptedServer]:
    """A server that gives these answers; a request too many gets 418, which no client tries again."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            reply = server.replies.pop(0) if server.replies else Reply(418, problem(418, "asked-too-often"))
            server.asked.append(Asked(self.command, self.path, dict(self.headers), self.read_body(reply)))
            if reply.status is None:
                hard = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
                self.close_connection = True
                return
            with suppress(ConnectionError):  # of a client that did not wait
                self.answer(reply, reply.status)

        def read_body(self, reply: Reply) -> bytes:
            length = int(self.headers.get("Content-Length", 0))
            if reply.slow != "request":
                return self.rfile.read(length)
            pieces = []
            for start in range(0, length, _PIECE):
                time.sleep(_PAUSE)
                pieces.append(self.rfile.read(min(_PIECE, length - start)))
            return b"".join(pieces)

        def answer(self, reply: Reply, status: int) -> None:
            if reply.slow == "head":
                self.wfile = _Trickle(self.wfile)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(reply.content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if reply.slow == "body":
                self.wfile = _Trickle(self.wfile)
            self.wfile.write(reply.content)

        do_GET = do_POST = handle_any

        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = ScriptedServer(f"http://127.0.0.1:{http.server_address[1]}", list(replies))
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
