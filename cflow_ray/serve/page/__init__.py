"""The page for a person at `/`: a few static files that ask the same API as everyone else."""

from __future__ import annotations

from hashlib import sha256
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response

_MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    **dict.fromkeys(
        (
            "api.js",
            "contours.js",
            "dom.js",
            "history.js",
            "inspect.js",
            "page.js",
            "picture.js",
            "registry.js",
            "token.js",
            "verdict.js",
        ),
        "text/javascript; charset=utf-8",
    ),
}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304 while it is the same
}


def page_router() -> APIRouter:
    """`/` and the files it is made of below `/page/`; links are relative, so that it works below a prefix, too."""
    contents = {name: resources.files(__name__).joinpath(name).read_bytes() for name in _MEDIA_TYPES}
    tags = {name: f'"{sha256(content).hexdigest()[:32]}"' for name, content in contents.items()}
    router = APIRouter(include_in_schema=False)

    def answer(name: str, request: Request) -> Response:
        headers = {**_HEADERS, "ETag": tags[name]}
        if request.headers.get("If-None-Match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(contents[name], media_type=_MEDIA_TYPES[name], headers=headers)

    @router.get("/")
    def index(request: Request) -> Response:
        """The page."""
        return answer("index.html", request)

    @router.get("/page/{name}")
    def file(name: str, request: Request) -> Response:
        """A file of the page."""
        if name not in contents:
            raise HTTPException(404, f"the page has no file {name!r}; it has {', '.join(contents)}")
        return answer(name, request)

    return router
