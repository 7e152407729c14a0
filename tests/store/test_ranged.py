"""A ranged file is the bytes it is made of, however one moves in it."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.store.ranged import RangedFile

moves = st.tuples(st.integers(-40, 40), st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]), st.integers(0, 40))


@settings(deadline=None)
@given(content=st.binary(max_size=32), steps=st.lists(moves, max_size=8), buffer=st.integers(1, 48))
def test_it_reads_as_a_buffer_in_memory_does(content: bytes, steps: list[tuple[int, int, int]], buffer: int) -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, end: int) -> bytes:
        asked.append((start, end))
        return content[start:end]

    ours, theirs = io.BufferedReader(RangedFile(read, len(content)), buffer), io.BytesIO(content)
    for offset, whence, size in steps:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: theirs.tell(), io.SEEK_END: len(content)}[whence]
        target = max(0, base + offset)
        assert ours.seek(target - base, whence) == theirs.seek(target) == target
        assert ours.read(size) == theirs.read(size)
        assert ours.tell() == theirs.tell()
    assert all(end <= len(content) for _, end in asked)
