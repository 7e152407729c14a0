"""What surrounds every request: an id, a line in the access log, its numbers, and an answer even to a bug."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cflow_ray.serve.access import NOBODY
from cflow_ray.serve.metrics import Metrics
from cflow_ray.serve.problems import ProblemError

log = logging.getLogger(__name__)
access_log = logging.getLogger("cflow_ray.access")

REQUEST_ID = "X-Request-Id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE = 499  # nginx' number for a client that did not wait for its answer


class Envelope:
    """Middleware. It leaves in the request's state: `request_id`, `arrived` (the event loop's clock) and `caller`.

    `tells_id` is off behind a proxy that puts the request's id on the answer itself, as Ray Serve's does.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tells_id: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._tells_id = tells_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "arrived": asyncio.get_running_loop().time(), "caller": NOBODY}
        start, status = time.perf_counter(), _CLIENT_GONE
        answered = False

        async def labelled(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                if self._tells_id:
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, labelled)
        except Exception:
            log.exception("request %s failed", request_id)
            if answered:
                raise
            state["problem"] = "internal"
            refusal = ProblemError("internal", "this is a bug of the server; its log names the request's id")
            await refusal.response(request_id)(scope, receive, labelled)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if "problem" in state:
            self._metrics.problems.labels(state["problem"]).inc()
        line = {
            "request_id": state["request_id"],
            "token": state["caller"].name,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        access_log.info("%s", json.dumps(line))  # as JSON, since a path may hold line breaks
