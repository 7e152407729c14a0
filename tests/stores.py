"""Object stores on loopback, and trees of files that tests write to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import s3fs

from cflow_ray.store.storage import Storage


@dataclass(frozen=True)
class Place:
    """A root URI that a test may write to, with the options of its file system."""

    root: str
    options: dict[str, str] = field(default_factory=dict)

    def flags(self) -> list[str]:
        """The options as flags of the command line."""
        return [part for key, value in self.options.items() for part in ("--storage-option", f"{key}={value}")]


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A bucket on moto's S3 server."""
    port = free_port()
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(port)
        yield bucket(f"http://127.0.0.1:{port}", "test", "test")
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A container of OpenStack Swift behind its S3 API: another implementation than AWS's or moto's."""
    scripts = Path(__file__).parents[2] / "shared" / "swift"
    if not scripts.is_dir():
        pytest.skip("the scripts that start Swift are not beside the checkout")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("Swift is installed with apt-get as root; neither is at hand")
    folder = tmp_path_factory.mktemp("swift")
    started = subprocess.run(
        ["bash", str(scripts / "start"), str(folder), str(free_port(6))],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    try:
        if started.returncode != 0:
            pytest.skip(f"Swift could not be started: {started.stderr.strip()[-300:]}")
        yield bucket(started.stdout.strip().splitlines()[-1], "test:tester", "testing")
    finally:
        subprocess.run(["bash", str(scripts / "stop"), str(folder)], check=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a test works: `local`, `moto` or `swift`, chosen by indirect parametrisation."""
    return Place(str(tmp_path)) if request.param == "local" else request.getfixturevalue(request.param)


def bucket(endpoint: str, key: str, secret: str) -> Place:
    """A new bucket on a server."""
    options = {"endpoint_url": endpoint, "key": key, "secret": secret}
    s3fs.S3FileSystem(**options).mkdir("line")
    return Place("s3://line", options)


def upload(source: Path, place: Place, folder: str, parts: Sequence[str]) -> str:
    """Copy some folders of a tree to a place; returns the URI there."""
    storage = Storage(f"{place.root}/{folder}", place.options)
    for file in sorted(file for part in parts for file in (source / part).rglob("*")):
        if file.is_file():
            storage.write(file.relative_to(source).as_posix(), file.read_bytes())
    return storage.uri


def free_port(count: int = 1) -> int:
    """A port such that it and the next ones are free."""
    while True:
        probes = [socket.socket() for _ in range(count)]
        try:
            probes[0].bind(("127.0.0.1", 0))
            port: int = probes[0].getsockname()[1]
            for offset, probe in enumerate(probes[1:], start=1):
                probe.bind(("127.0.0.1", port + offset))
            return port
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()


def wait_for_port(port: int, seconds: float = 60) -> None:
    """Until something listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


def empty_tree(kind: str, request: pytest.FixtureRequest) -> Iterator[Storage]:
    """An empty tree: a `local` folder, one in fsspec's `memory`, or one on `s3`; for a fixture to yield from."""
    if kind == "local":
        yield Storage(str(request.getfixturevalue("tmp_path") / "tree"))
        return
    name = f"{uuid.uuid4().hex}/tree"
    if kind == "s3":
        place: Place = request.getfixturevalue("moto")
        yield Storage(f"{place.root}/{name}", place.options)
        return
    tree = Storage(f"memory://{name}")
    yield tree
    for path in tree.files():
        tree.remove(path)
