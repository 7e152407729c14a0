"""No more threads run than there are turns, nobody waits for ever, and whoever waited longest is next."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cflow_ray.model.turns import GivenUpError, Turns


def test_a_single_turn_goes_round_in_the_order_of_coming() -> None:
    turns, came, order = Turns(1), threading.Barrier(2), list[str]()

    def work(name: str) -> None:
        with turns.turn():
            for _ in range(3):
                order.append(name)
                turns.pass_on()

    def first() -> None:
        with turns.turn():
            came.wait()
            _until(lambda: len(turns._waiting) == 2)
            for _ in range(3):
                order.append("a")
                turns.pass_on()

    with ThreadPoolExecutor(3) as pool:
        of_a = pool.submit(first)
        came.wait()  # "a" has the turn
        of_b = pool.submit(work, "b")
        _until(lambda: len(turns._waiting) == 1)
        of_c = pool.submit(work, "c")
        for done in (of_a, of_b, of_c):
            done.result(timeout=30)
    assert order == [*"abc" * 3]


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
def test_no_more_run_at_once_than_there_are_turns_and_all_come_to_their_end(at_once: int) -> None:
    turns, running, most, lock, there = Turns(at_once), 0, 0, threading.Lock(), threading.Barrier(6)

    def work(pieces: int) -> int:
        nonlocal running, most
        there.wait()
        with turns.turn():
            for _ in range(pieces):
                with lock:
                    running += 1
                    most = max(most, running)
                threading.Event().wait(0.02)
                with lock:
                    running -= 1
                turns.pass_on()
        return pieces

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, [5, 1, 9, 3, 7, 2], timeout=60)) == [5, 1, 9, 3, 7, 2]
    assert most <= at_once
    assert at_once == 1 or most > 1


def test_after_a_failure_the_others_are_given_up() -> None:
    turns, steps = Turns(2), dict.fromkeys("abcd", 0)

    def work(name: str) -> None:
        with turns.turn():
            while True:
                steps[name] += 1
                if name == "a" and steps[name] == 3:
                    raise ValueError("lost")
                turns.pass_on()

    with ThreadPoolExecutor(4) as pool:
        errors = [pool.submit(work, name).exception(timeout=30) for name in steps]
    assert [type(error) for error in errors] == [ValueError, GivenUpError, GivenUpError, GivenUpError]
    with pytest.raises(GivenUpError):
        work("late")


def _until(condition: object) -> None:
    """Waits until a condition holds; the test's own limit ends it."""
    assert callable(condition)
    while not condition():
        threading.Event().wait(0.001)
