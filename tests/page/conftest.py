"""A browser, and the page over a registry that may be changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests import serving
from tests.versions import copy_version

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
TOKENS = {"for-admins": "admin", "for-users": "score"}

TIMEOUT_MS = 30_000  # for anything to be seen: the machine may be busy

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; of a module, as Playwright's event loop runs as long as it does."""
    if CHROMIUM is None:
        pytest.skip("the page is tested in Debian's chromium, which is not installed: apt-get install chromium")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def own_registry(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """brick with a second version that is not promoted, and tile, which is brick under another name."""
    root = tmp_path_factory.mktemp("page") / "registry"
    shutil.copytree(registry, root)
    opened = Registry(Storage(str(root)))
    first = opened.best("brick")
    copy_version(root, f"brick/{first}", f"tile/{first}")
    opened.promote("tile", first)
    copy_version(root, f"brick/{first}", "brick/v2-abcdef")
    return opened


@pytest.fixture(scope="module")
def site(own_registry: Registry) -> Iterator[str]:
    """The page where nobody needs a token to score, and nobody may promote."""
    with serving.site(own_registry.storage.uri) as running:
        yield running.url


@pytest.fixture(scope="module")
def closed_site(own_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page where every call needs a token."""
    tokens = serving.tokens_file(tmp_path_factory.mktemp("tokens"), **TOKENS)
    with serving.site(own_registry.storage.uri, tokens=str(tokens)) as running:
        yield running.url


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a page; in the end it must have asked its own server only, and nothing may have gone wrong in it."""
    contexts, asked, troubles = [], [], []

    def open_at(url: str, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: asked.append((url, request.url)))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.goto(url)
        return page

    yield open_at
    for context in contexts:
        context.close()
    refusals = "Failed to load resource"  # the browser's own note of an answer of 400 or above
    assert [trouble for trouble in troubles if not trouble.startswith(refusals)] == []
    for url, request in asked:
        assert request.startswith(("blob:", "data:")) or urlsplit(request).netloc == urlsplit(url).netloc, request
        assert not any(token in request for token in TOKENS), request


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where a test leaves its screenshots; pytest keeps those of its last runs."""
    folder = tmp_path / "artefacts"
    folder.mkdir()
    return folder
