"""A local object store for a measurement: Swift where its scripts lie beside the checkout, else moto."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.sides import CHECKOUT
from tests.stores import Place, bucket, free_port, wait_for_port

_SWIFT = CHECKOUT.parent / "shared" / "swift"


@contextmanager
def object_store(work: Path) -> Iterator[tuple[str, Place]]:
    """A server's name, and a bucket on it; it is stopped at the end."""
    with _swift(work) if _SWIFT.is_dir() else _moto() as found:
        yield found


@contextmanager
def _swift(work: Path) -> Iterator[tuple[str, Place]]:
    folder = work / "swift"
    folder.mkdir()
    command = ["bash", str(_SWIFT / "start"), str(folder), str(free_port(6))]
    try:
        started = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield "Swift", bucket(started.stdout.strip().splitlines()[-1], "test:tester", "testing")
    finally:
        subprocess.run(["bash", str(_SWIFT / "stop"), str(folder)], check=True)


@contextmanager
def _moto() -> Iterator[tuple[str, Place]]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield "moto", bucket(f"http://127.0.0.1:{port}", "test", "test")
    finally:
        server.terminate()
        server.wait(30)
