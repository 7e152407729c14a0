"""Processes of Ray clusters that tests start, watch and kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

Start = Callable[[str, BaseModel], subprocess.Popen[bytes]]


@contextmanager
def commands(environment: dict[str, str], folder: Path) -> Iterator[Start]:
    """Starts `cflow-ray` verbs with a configuration, each in a process of its own; what still runs at the end is stopped."""
    started: list[subprocess.Popen[bytes]] = []

    def start(verb: str, config: BaseModel) -> subprocess.Popen[bytes]:
        path = folder / f"{verb}-{len(started)}.yaml"
        path.write_text(config.model_dump_json())
        command = [str(Path(sys.executable).with_name("cflow-ray")), verb, "--config", str(path), "--json"]
        with path.with_suffix(".log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(30)


def processes_below(ancestor: int, *names: str) -> list[int]:
    """Processes below one whose command line holds one of the names."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and any(name.encode() in read_proc(entry / "cmdline") for name in names):
            pid = int(entry.name)
            while pid > 1 and pid != ancestor:
                pid = _parent(pid)
            if pid == ancestor:
                found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process still runs."""
    return bool(read_proc(Path(f"/proc/{pid}/cmdline")))


def read_proc(path: Path) -> bytes:
    """A file of /proc; empty where the process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    after_name = read_proc(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return int(after_name[1]) if after_name else 0


def in_a_process_of_its_own(script: str, config: BaseModel, environment: dict[str, str], folder: Path) -> Any:
    """What a script prints as JSON that joins another cluster than this process has."""
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.1)
