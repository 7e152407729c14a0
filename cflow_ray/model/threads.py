"""How many threads torch's operations take for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on so many threads, for the calling thread.

    Many small operations gain nothing by a second, and threads spin while they wait: on a busy machine with two a
    detector takes 3 CPU-seconds to compile instead of 0.8, and what torch does around a compiled graph 15 CPU-ms an
    image instead of 1.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
