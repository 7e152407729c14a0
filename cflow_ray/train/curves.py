"""The curves of a category's fits as TensorBoard reads them: event files in the run's folder."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from cflow_ray.errors import StorageError
from cflow_ray.model.progress import FitProgress
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

_NAME = "events.out.tfevents"


class Curves:
    """One run of TensorBoard: a folder of event files, each written whole with what came since the one before.

    An object store cannot append, and TensorBoard does not look again at what it has read of a file. What a worker
    before this one has written is left out, since a fit that goes on takes the same steps to the same values. A file
    that cannot be written or read costs points of a curve, not the fit, so it is logged. Levels may call from several
    threads.
    """

    def __init__(self, folder: Storage, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Files are written `seconds` apart; 0: only by `write`."""
        self._folder = folder
        self._seconds = seconds
        self._clock = clock
        self._written = clock()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._last_steps = _last_steps(folder)

    def add(self, progress: FitProgress, stride: float, seed: int | None = None) -> None:
        """A look at a level of this stride; `seed` where the category has fits with several."""
        values = {"nll": progress.nll, "loss": progress.loss, "learning_rate": progress.rate}
        place = f"{_fit(progress, seed)}/level_{progress.level + 1}_stride_{stride:g}"
        event = Event(wall_time=time.time(), step=progress.step)
        with self._lock:
            for name, value in values.items():
                if value is not None and progress.step > self._last_steps.get(name + place, -1):
                    event.summary.value.add(tag=name + place, simple_value=value)
                    self._last_steps[name + place] = progress.step
            if event.summary.value:
                self._events.append(event)
            if self._seconds > 0 and self._clock() - self._written >= self._seconds:
                self._write()

    def write(self) -> None:
        """Write what has come since the last file."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._written = self._clock()
        if not self._events:
            return
        name = f"{_NAME}.{time.time_ns()}.{socket.gethostname()}"  # TensorBoard reads files in the order of their names
        head = Event(wall_time=self._events[0].wall_time, file_version="brain.Event:2")
        try:
            self._folder.write(name, b"".join(map(_record, [head, *self._events])))
        except StorageError as error:
            log.warning("no curves this time: %s", error)
            return
        self._events.clear()


def _fit(progress: FitProgress, seed: int | None) -> str:
    """Which of a category's fits it is, where there are several: the one that is kept has the plain name."""
    fold = f"_fold_{progress.model + 1}" if progress.model + 1 < progress.models else ""
    return fold if seed is None else f"_seed_{seed}{fold}"


def _last_steps(folder: Storage) -> dict[str, int]:
    """The last step of every tag in the files of a folder."""
    steps: dict[str, int] = {}
    try:
        for name in folder.files():
            for event in _events(folder.read(name)):
                steps |= {value.tag: event.step for value in event.summary.value}
    except (StorageError, DecodeError, struct.error) as error:
        log.warning("points of the curves in %s may be drawn twice: %s", folder.uri, error)
    return steps


# A file of events is a file of TensorFlow's records: length, its checksum, content, its checksum.


def _record(event: Event) -> bytes:
    content: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _events(content: bytes) -> Iterator[Event]:
    start = 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        yield Event.FromString(content[start + 12 : start + 12 + length])
        start += 16 + length


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))
