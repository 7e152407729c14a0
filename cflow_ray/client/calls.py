"""The calls of the API as values: what is sent, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from cflow_ray.answers import (
    CategoryAnswer,
    CategoryDetailAnswer,
    HealthAnswer,
    PromoteRequest,
    ScoreAnswer,
    ScoresAnswer,
)
from cflow_ray.client.failures import ProblemError
from cflow_ray.errors import ServingError

Result = TypeVar("Result")

_CATEGORIES = TypeAdapter(tuple[CategoryAnswer, ...])
_ANY_IMAGE = "application/octet-stream"


@dataclass(frozen=True)
class Upload:
    """One image of a request with several."""

    category: str
    content: bytes
    """The bytes of the image file."""
    name: str = "image"
    """Comes back with its item."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request, and the form of its answer."""

    method: str
    path: str
    answer: TypeAdapter[Result]
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    """Of httpx's keywords `content`, `files`, `json` and `headers` those that it needs."""
    repeatable: bool = True
    """Whether doing it twice is doing it once."""

    def read(self, response: httpx.Response) -> Result:
        """The typed answer; raises ProblemError, or ServingError where it is not one of this API."""
        if not response.is_success:
            raise ProblemError.of(response)
        try:
            return self.answer.validate_json(response.content)
        except ValidationError as error:
            raise ServingError(
                f"{response.url} answered what this client cannot read ({error.error_count()} fields differ, the first "
                f"{'.'.join(map(str, error.errors()[0]['loc'])) or 'all of it'}). "
                "Give the address of a cflow-ray server of this client's version."
            ) from error


def score(
    category: str, image: bytes, with_map: bool, with_overlay: bool, target_fpr: float | None
) -> Call[ScoreAnswer]:
    """One image."""
    body = {"content": image, "headers": {"Content-Type": _ANY_IMAGE}}
    path = f"v1/score/{_quoted(category)}"
    return Call("POST", path, TypeAdapter(ScoreAnswer), _options(with_map, with_overlay, target_fpr), body)


def score_images(
    images: Sequence[Upload], with_map: bool, with_overlay: bool, target_fpr: float | None
) -> Call[ScoresAnswer]:
    """Several images, their categories mixed: a category holds for the files after it."""
    parts: list[tuple[str, tuple[str | None, str | bytes] | tuple[str, bytes, str]]] = []
    category = None
    for image in images:
        if image.category != category:
            category = image.category
            parts.append(("category", (None, category)))
        parts.append(("image", (image.name, image.content, _ANY_IMAGE)))
    options = _options(with_map, with_overlay, target_fpr)
    return Call("POST", "v1/score", TypeAdapter(ScoresAnswer), options, {"files": parts})


def categories() -> Call[tuple[CategoryAnswer, ...]]:
    """All categories."""
    return Call("GET", "v1/categories", _CATEGORIES)


def category(name: str) -> Call[CategoryDetailAnswer]:
    """One category."""
    return Call("GET", f"v1/categories/{_quoted(name)}", TypeAdapter(CategoryDetailAnswer))


def promote(name: str, version: str) -> Call[CategoryDetailAnswer]:
    """Move a category's pointer to a version."""
    body = {"json": PromoteRequest(version=version).model_dump()}
    return Call("POST", f"v1/categories/{_quoted(name)}/promote", TypeAdapter(CategoryDetailAnswer), body=body)


def rollback(name: str) -> Call[CategoryDetailAnswer]:
    """Move a category's pointer back; twice is two steps back."""
    path = f"v1/categories/{_quoted(name)}/rollback"
    return Call("POST", path, TypeAdapter(CategoryDetailAnswer), repeatable=False)


def health() -> Call[HealthAnswer]:
    """Whether the server lives."""
    return Call("GET", "healthz", TypeAdapter(HealthAnswer))


def _quoted(category: str) -> str:
    return quote(category, safe="")


def _options(with_map: bool, with_overlay: bool, target_fpr: float | None) -> dict[str, str]:
    options = {"map": "png" if with_map else None, "overlay": "1" if with_overlay else None}
    options["target_fpr"] = None if target_fpr is None else repr(target_fpr)
    return {name: value for name, value in options.items() if value is not None}
