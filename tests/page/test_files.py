"""The files of the page: what they allow the browser, and that they ask nobody else."""

from __future__ import annotations

import re
from importlib import resources

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from cflow_ray.serve.page import page_router

FOLDER = resources.files("cflow_ray.serve.page")
FILES = sorted(file.name for file in FOLDER.iterdir() if not file.name.startswith("__"))


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page_router())
    return TestClient(app)


def answers(client: TestClient) -> dict[str, httpx.Response]:
    return {name: client.get("/" if name == "index.html" else f"/page/{name}") for name in FILES}


def test_every_file_is_served_under_a_policy_that_lets_in_nothing_from_elsewhere(client: TestClient):
    for name, answer in answers(client).items():
        assert answer.status_code == 200, name
        assert answer.content == FOLDER.joinpath(name).read_bytes()
        policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["img-src"] == "'self' blob: data:"
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_a_file_that_is_the_same_is_not_sent_again(client: TestClient):
    for answer in answers(client).values():
        again = client.get(answer.url.path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(answer.url.path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["__init__.py", "nothing.js", "..%2F__init__.py", "%2e%2e/api.py"])
def test_nothing_else_is_served(client: TestClient, name: str):
    assert client.get(f"/page/{name}").status_code == 404


def test_the_page_is_no_part_of_the_api_s_description(client: TestClient):
    assert client.get("/openapi.json").json()["paths"] == {}


@pytest.mark.parametrize("name", FILES)
def test_no_file_makes_markup_of_data_or_names_another_server(name: str):
    text = FOLDER.joinpath(name).read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage|cookie", text)
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert not re.search(
        r"""(?:src|href)=["']/|(?:ask|fetch)\("[^"]*", ["'`]/""", text
    )  # would not work below a prefix
    assert not re.search(r"\son\w+=|\sstyle=", text) or name.endswith(".js")


def test_every_module_and_element_that_is_named_is_there():
    texts = {name: FOLDER.joinpath(name).read_text(encoding="utf-8") for name in FILES}
    ids = set(re.findall(r'\bid="([^"]+)"', texts["index.html"]))
    for name, text in texts.items():
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(FILES), name
        assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= ids, name
    for referred in re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', texts["index.html"]):
        assert referred in ids
