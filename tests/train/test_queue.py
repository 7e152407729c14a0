"""The queue hands every category out once, again after a death, and sets aside what kills its worker twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cflow_ray.config import DetectorConfig
from cflow_ray.data.samples import TRAIN, Sample
from cflow_ray.train.progress import CategoryProgress
from cflow_ray.train.queue import CategoryQueue
from cflow_ray.train.task import FitTask, Outcome


def task(category: str, images: int = 1) -> FitTask:
    samples = tuple(Sample(f"{category}/{number}.png", category, TRAIN, 0) for number in range(images))
    return FitTask(category, samples, DetectorConfig(), data_digest="", work=images)


@pytest.fixture
def queue() -> CategoryQueue:
    queue = CategoryQueue([task("a", 3), task("b", 2), task("c", 1)])
    queue.start("first")
    return queue


def taken(queue: CategoryQueue, group: str, rank: int) -> str | None:
    found = queue.take(group, rank)
    return None if found is None else found.category


def test_categories_come_once_and_in_order(queue: CategoryQueue) -> None:
    assert [taken(queue, "first", rank) for rank in (0, 1, 0, 1)] == ["a", "b", "c", None]


def test_what_a_group_had_in_hand_comes_first_in_the_next_longest_first(queue: CategoryQueue) -> None:
    assert [taken(queue, "first", rank) for rank in (0, 1)] == ["a", "b"]
    queue.finish(Outcome("a", "fitted"))
    queue.start("second")
    assert queue.status().waiting == 2
    assert [taken(queue, "second", 0) for _ in range(3)] == ["b", "c", None]


def test_a_start_of_the_same_group_puts_nothing_back(queue: CategoryQueue) -> None:
    assert taken(queue, "first", 0) == "a"
    queue.start("first")  # the second worker of the group
    assert taken(queue, "first", 1) == "b"


def test_a_worker_of_an_earlier_group_gets_nothing_but_may_finish(queue: CategoryQueue) -> None:
    assert taken(queue, "first", 0) == "a"
    queue.start("second")
    assert taken(queue, "first", 0) is None
    queue.finish(Outcome("a", "fitted", "v1-aaaaaa"))
    assert [taken(queue, "second", 0) for _ in range(3)] == ["b", "c", None]
    assert queue.status().outcomes["a"].version == "v1-aaaaaa"


def test_two_deaths_of_its_own_worker_set_a_category_aside(queue: CategoryQueue) -> None:
    for group, following in (("first", "second"), ("second", "third")):
        assert [taken(queue, group, rank) for rank in (0, 1)] == ["a", "b"]
        queue.died(0, "ActorDiedError")
        queue.start(following)
    outcome = queue.status().outcomes["a"]
    assert outcome.status == "failed"
    assert outcome.error == "set aside: its worker died 2 times while fitting it (ActorDiedError)"
    assert [taken(queue, "third", 0) for _ in range(3)] == ["b", "c", None]


def test_deaths_of_other_workers_are_no_strikes(queue: CategoryQueue) -> None:
    for group in ("first", "second", "third", "fourth"):
        queue.start(group)
        assert taken(queue, group, 0) == "a"
        queue.died(1, "ActorDiedError")
    assert "a" not in queue.status().outcomes


def test_progress_is_that_of_categories_in_hand(queue: CategoryQueue) -> None:
    look = CategoryProgress(images=1, of_images=3, images_per_second=2.0)
    queue.report("a", look)
    assert queue.status().in_hand == {}
    assert taken(queue, "first", 0) == "a"
    assert queue.status().in_hand == {"a": None}
    queue.report("a", look)
    assert queue.status().in_hand == {"a": look}
    queue.finish(Outcome("a", "fitted"))
    assert queue.status().in_hand == {}


def test_the_actors_process_does_not_import_torch() -> None:
    """It costs 400 MB and seconds, and the queue needs none of it."""
    code = "import sys, cflow_ray.train.queue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
