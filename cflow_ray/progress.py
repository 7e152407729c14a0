"""Progress of long work: live bars on a terminal, plain log lines elsewhere; always on standard error."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0
_NEVER = float("inf")


class ProgressBoard:
    """One line a piece of work: `update` as often as you like, in any order; lines appear as names do."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(
            *columns, TextColumn("{task.fields[note]}", markup=False), console=self._console, disable=not self._live
        )
        self._tasks: dict[str, TaskID] = {}
        self._due: dict[str, float] = {}  # when a name may have its next line

    def __enter__(self) -> Self:
        self._bars.start()
        if not self._live:
            log.info("%s", self._title)
        else:
            self._console.print(self._title, style="bold", markup=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, name: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` (0: not known) are finished; `note` stands behind the bar."""
        if self._live:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total or None, note=note)
            self._bars.update(self._tasks[name], completed=done, total=total or None, note=note)
            return
        finished = total > 0 and done >= total
        due = self._due.get(name, 0.0)
        if time.monotonic() >= due or (finished and due < _NEVER):
            self._due[name] = _NEVER if finished else time.monotonic() + _SECONDS_BETWEEN_LINES
            log.info("%s: %s %s", name, f"{done}/{total}" if total else done, note)


def log_to_stderr(verbose: bool = False) -> None:
    """Send the package's log lines to standard error, as a command line does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("cflow_ray")
    package.handlers[:] = [handler]
    package.setLevel(logging.DEBUG if verbose else logging.INFO)
    package.propagate = False
