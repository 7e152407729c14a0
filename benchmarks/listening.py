"""Servers that a measurement asks: a module in a process and an environment of its own, stopped at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.sides import CHECKOUT, THREADS


@contextmanager
def listening(python: Path, module: str, threads: int, **settings: Any) -> Iterator[str]:
    """The URL that `benchmarks.<module>` prints once it answers; it ends when its stdin does."""
    environment = os.environ | dict.fromkeys(THREADS, str(threads)) | {"PYTHONWARNINGS": "ignore"}
    command = [python, "-m", f"benchmarks.{module}", json.dumps(settings)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, text=True, start_new_session=True, **pipes)
    assert process.stdout is not None
    try:
        url = next((line.strip() for line in process.stdout if line.startswith("http://")), None)
        if url is None:
            raise SystemExit(f"benchmarks.{module} did not start")
        yield url
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(120)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # what it has started and left behind, its stdout open
