"""Progress: lines where there is no terminal, bars where there is one."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from cflow_ray.progress import ProgressBoard


def test_off_a_terminal_a_name_gets_its_first_and_its_last_line(caplog: pytest.LogCaptureFixture):
    stream = io.StringIO()
    with caplog.at_level(logging.INFO), ProgressBoard("work", Console(file=stream)) as board:
        for done in range(1, 101):
            board.update("images", done, 100)
        board.update("images", 100, 100)
    assert [record.getMessage().strip() for record in caplog.records] == ["work", "images: 1/100", "images: 100/100"]
    assert stream.getvalue() == ""


def test_an_unknown_total_is_not_shown(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO), ProgressBoard("work", Console(file=io.StringIO())) as board:
        board.update("images", 7, 0)
    assert caplog.records[-1].getMessage().strip() == "images: 7"


def test_on_a_terminal_every_name_has_a_bar_with_its_note(caplog: pytest.LogCaptureFixture):
    stream = io.StringIO()
    with ProgressBoard("work", Console(file=stream, force_terminal=True, width=120)) as board:
        board.update("screw", 1, 2, "level 1")
        board.update("zipper", 2, 2, "failed [Errno 5]")
    shown = stream.getvalue()
    assert all(part in shown for part in ("work", "screw", "1/2", "level 1", "zipper", "2/2", "failed [Errno 5]"))
    assert caplog.records == []
