"""How a call can fail: the server said why, or nothing came back."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from time import time

import httpx
from pydantic import ValidationError

from cflow_ray.answers import ProblemAnswer
from cflow_ray.errors import ServingError

NO_PROBLEM = "about:blank"
"""The type of an answer that is no problem JSON."""
_SHOWN = 200  # characters of an answer that is no problem JSON


class UnreachableError(ServingError):
    """No answer came before the deadline; the cause is what happened at the last try."""


class ProblemError(ServingError):
    """The server refused a request and said why."""

    def __init__(self, problem: ProblemAnswer, retry_after: float | None = None) -> None:
        request = f"; request {problem.request_id}" if problem.request_id else ""
        super().__init__(f"the server answered {problem.status} ({problem.title}): {problem.detail}{request}")
        self.problem = problem
        """Why, as RFC 9457 has it; `problem.kind` is a word to branch on."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait, where it did."""

    def __reduce__(self) -> tuple[type[ProblemError], tuple[ProblemAnswer, float | None]]:
        """For pickle, which would call the constructor with the message."""
        return type(self), (self.problem, self.retry_after)

    @classmethod
    def of(cls, response: httpx.Response) -> ProblemError:
        """From an answer that is no success; one that is no problem JSON, a proxy's say, is quoted."""
        try:
            problem = ProblemAnswer.model_validate_json(response.content)
        except ValidationError:
            text = " ".join(response.text.split())[:_SHOWN] or "it gave no reason"
            title = response.reason_phrase or "no reason phrase"
            problem = ProblemAnswer(type=NO_PROBLEM, title=title, status=response.status_code, detail=text)
        return cls(problem, _seconds(response.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header says, which is seconds or a date; None where it says neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return None
