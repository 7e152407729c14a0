"""More pieces of work than threads may run at once: each goes on for a while, then lets the one that waited longest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class GivenUpError(Exception):
    """The work of another thread failed, so that this one's is not needed."""


class Turns:
    """At most `at_once` of the threads that take turns run; the order is first come, first served.

    Once one of them has failed, the others are given up where they next pass their turn on.
    """

    def __init__(self, at_once: int) -> None:
        self._lock = threading.Lock()
        self._free = at_once
        self._waiting: deque[threading.Event] = deque()
        self._failed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for a turn of the calling thread, and ends it. Raises GivenUpError where another's work has failed."""
        self._begin()
        try:
            self._go_on()
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            self._end()

    def pass_on(self) -> None:
        """Within a turn: goes on at once where nobody waits, or else gives the turn away and waits for another.

        Raises GivenUpError where another's work has failed.
        """
        with self._lock:
            own = self._queued() if self._waiting else None
            if own is not None:
                self._waiting.popleft().set()
        if own is not None:
            own.wait()
        self._go_on()

    def _go_on(self) -> None:
        if self._failed:
            raise GivenUpError

    def _begin(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            own = self._queued()
        own.wait()

    def _end(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    def _queued(self) -> threading.Event:
        own = threading.Event()
        self._waiting.append(own)
        return own
