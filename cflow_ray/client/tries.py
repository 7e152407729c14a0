"""When a call is tried again, how long it waits before, and when it is given up."""

from __future__ import annotations

import logging
import math
from time import monotonic
from typing import Any

import httpx
import tenacity
from tenacity import RetryCallState

from cflow_ray.client.calls import Call
from cflow_ray.client.failures import NO_PROBLEM, ProblemError, UnreachableError
from cflow_ray.errors import ConfigError

log = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0
_PASSING = {408, 429, 502, 503, 504}
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NEVER = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.ProxyError)

_jitter = tenacity.wait_random_exponential(multiplier=2 * _FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)


class Deadline:
    """The time that one call has for all its tries and the waits between them."""

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            raise ConfigError(f"the deadline is {seconds!r}; give a finite number of seconds above 0")
        self.seconds = seconds
        self._start = monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the call began."""
        return monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds, a millisecond at least, so that the last try can still fail by itself."""
        return max(1e-3, self.seconds - self.spent)


def retry_settings(call: Call[Any], deadline: Deadline) -> dict[str, Any]:
    """Keyword arguments of tenacity's Retrying and AsyncRetrying.

    Waits are drawn from 0 to a bound that doubles from 0.2 s to 5 s, and are never shorter than the server asked for. A
    try that would begin after the deadline is not made. A call that may not be done twice is tried again only where it
    cannot have been done: no connection, or 429.
    """
    return {
        "retry": tenacity.retry_if_exception(lambda error: may_pass(error, call.repeatable)),
        "wait": _wait,
        "stop": tenacity.stop_before_delay(deadline.seconds),
        "before_sleep": _tell,
        "reraise": True,
    }


def may_pass(error: BaseException, repeatable: bool) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, ProblemError):
        passing = error.problem.status in _PASSING or _is_of_rays_proxy(error)
        return passing if repeatable else error.problem.status == 429
    return isinstance(error, httpx.TransportError if repeatable else _NOT_SENT) and not isinstance(error, _NEVER)


def _is_of_rays_proxy(error: ProblemError) -> bool:
    """Ray Serve's proxy answers for a replica that died over a request with a 500 of its own, in plain text."""
    return error.problem.status == 500 and error.problem.type == NO_PROBLEM


def unreachable(url: str, error: httpx.TransportError, deadline: Deadline) -> UnreachableError:
    """What a caller is told where no answer came."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreachableError(
        f"no answer from {url} in {deadline.spent:.1f} s of {deadline.seconds:g}: {reason}. "
        "Check the address and that the server runs (cflow-ray serve), or give a longer deadline."
    )


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ProblemError) else None
    return max(_jitter(state), asked or 0.0)


def _tell(state: RetryCallState) -> None:
    assert state.outcome is not None
    log.info("%s; trying again in %.1f s", state.outcome.exception(), state.upcoming_sleep)
