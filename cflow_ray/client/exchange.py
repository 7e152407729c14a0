"""One exchange with a server: a request and its whole answer, or an error at the deadline.

httpx's timeout bounds each connect, read and write alone, so a peer that takes or gives a few bytes now and then would hold
its caller for any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextvars import copy_context
from threading import Thread

import httpx

from cflow_ray.client.tries import Deadline


def exchange(http: httpx.Client, request: httpx.Request, deadline: Deadline) -> httpx.Response:
    """The answer with its body; raises httpx.TransportError, ReadTimeout at the deadline.

    Nothing ends another's read or write, so the request has a thread of its own. One that is late is left behind: it ends
    at the next bytes of its answer's body, by httpx's own timeouts, or after the client is closed.
    """
    answer: Future[httpx.Response] = Future()

    def fill() -> None:
        try:
            answer.set_result(_whole_answer(http, request, deadline))
        except BaseException as error:
            answer.set_exception(error)

    # with the caller's context, as programs that trace their requests expect
    Thread(target=copy_context().run, args=(fill,), name="cflow-ray-exchange", daemon=True).start()
    wait([answer], deadline.left)
    if not answer.done():
        raise _late(request)
    return answer.result()


async def exchange_on_loop(http: httpx.AsyncClient, request: httpx.Request, deadline: Deadline) -> httpx.Response:
    """The same on an event loop, where a late request is cancelled."""
    try:
        async with asyncio.timeout(deadline.left):
            return await http.send(request)
    except TimeoutError as error:
        raise _late(request) from error


class _UntilDeadline(httpx.SyncByteStream):
    """An answer's bytes as long as there is time for them."""

    def __init__(self, answer: httpx.Response, deadline: Deadline) -> None:
        assert isinstance(answer.stream, httpx.SyncByteStream)
        self._stream, self._request, self._deadline = answer.stream, answer.request, deadline

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if self._deadline.spent > self._deadline.seconds:
                raise _late(self._request)
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _whole_answer(http: httpx.Client, request: httpx.Request, deadline: Deadline) -> httpx.Response:
    answer = http.send(request, stream=True)
    try:
        answer.stream = _UntilDeadline(answer, deadline)
        answer.read()
    finally:
        answer.close()
    return answer


def _late(request: httpx.Request) -> httpx.ReadTimeout:
    return httpx.ReadTimeout("timed out", request=request)  # as httpx says it of a read
