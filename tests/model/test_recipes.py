"""Schedules keep their caps whatever the data, and the rate rises, peaks once and falls to nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cflow_ray.model.features import LevelFeatures
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.recipes import LevelSchedule, PaperSchedule, schedule_of

TILES = 284
"""Training images of the set that the recipes were tuned on."""
STRIDES = st.sampled_from([4, 8, 16, 32])
RECIPES = st.sampled_from(["fast", "balanced", "best"])


@pytest.mark.parametrize(
    ("recipe", "steps", "fibres", "whitened"),
    [
        ("fast", (1200, 960, 960), (512, 256, 256), False),
        ("balanced", (3200, 1920, 960), (512, 256, 256), False),
        ("best", (4000, 2400, 960), (1024, 512, 256), True),
    ],
)
def test_with_plenty_of_data_the_recipes_are_the_measured_ones(
    recipe: str, steps: tuple[int, ...], fibres: tuple[int, ...], whitened: bool
) -> None:
    """Fibres of the table in the design notes but for the coarsest level of `best`, steps as tuned."""
    schedules = [schedule_of(recipe, stride, TILES, 10**6) for stride in (8, 16, 32)]
    assert tuple(schedule.steps for schedule in schedules) == steps
    assert tuple(schedule.fibres for schedule in schedules) == fibres
    assert [schedule.rate for schedule in schedules] == [8e-3, 8e-3, 2e-3]
    assert [schedule.whitened for schedule in schedules] == [whitened] * 3


@pytest.mark.parametrize(("tiles", "times"), [(1, 1), (283, 1), (284, 1), (426, 1.5), (568, 2), (1136, 4), (10**6, 4)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_larger_sets_take_more_steps_and_at_most_four_times_as_many(tiles: int, times: float, stride: int) -> None:
    tuned = schedule_of("balanced", stride, TILES, 10**6)
    assert schedule_of("balanced", stride, tiles, 10**6) == replace(tuned, steps=times * tuned.steps)


@given(recipe=RECIPES, stride=STRIDES, tiles=st.integers(1, 10**4), positions=st.integers(1, 4096))
def test_no_fibre_is_seen_in_more_passes_than_allowed(recipe: str, stride: int, tiles: int, positions: int) -> None:
    schedule = schedule_of(recipe, stride, tiles, positions)
    assert 1 <= schedule.fibres <= tiles * positions
    assert schedule.steps >= 1
    allowed = (8 if stride > 16 else 10) * math.sqrt(min(max(tiles / TILES, 1), 4))
    assert schedule.steps * schedule.fibres <= allowed * tiles * positions


@pytest.mark.parametrize(("tiles", "passes"), [(32, 8), (TILES, 8), (4 * TILES, 16), (16 * TILES, 16)])
def test_larger_sets_are_passed_over_more_often_and_at_most_twice_as_often(tiles: int, passes: int) -> None:
    schedule = schedule_of("best", 32, tiles, 8)
    assert schedule.steps * schedule.fibres == passes * tiles * 8


@pytest.mark.parametrize("tiles", [1, 31, 32, 33, 64])
@pytest.mark.parametrize("positions", [1, 64, 1024])
def test_the_papers_schedule_is_what_its_descent_does(tiles: int, positions: int) -> None:
    """Two hundred passes in the official order, drops of last, smaller batches and draws included."""
    level = LevelFeatures((positions, 1), 1.0, list(torch.zeros(tiles, positions, 4, dtype=torch.float16)))
    fibres, paper, draws = Fibres(level, range(tiles), 4), PaperSchedule(), torch.Generator()
    of_a_pass = [
        len(rows_NC)
        for batch in fibres.batches(paper.images, draws)
        for rows_NC, _ in fibres.shuffled(batch, paper.fibres, draws)
    ]
    schedule = schedule_of("paper", 8, tiles, positions)
    assert schedule.steps == 200 * len(of_a_pass)
    assert of_a_pass == [schedule.fibres] * len(of_a_pass)


@given(
    recipe=RECIPES,
    stride=STRIDES,
    tiles=st.integers(1, 10**4),
    more=st.integers(0, 10**4),
    positions=st.integers(1, 4096),
)
def test_more_images_never_mean_fewer_fibres_seen(
    recipe: str, stride: int, tiles: int, more: int, positions: int
) -> None:
    few, many = (schedule_of(recipe, stride, count, positions) for count in (tiles, tiles + more))
    assert few.fibres <= many.fibres
    assert few.steps * few.fibres <= many.steps * many.fibres + many.fibres  # up to the step that is rounded away


@given(steps=st.integers(1, 4000), rate=st.floats(1e-5, 1e-1))
def test_rate_is_positive_and_peaks_at_the_given_rate_after_the_warm_up(steps: int, rate: float) -> None:
    schedule = LevelSchedule(steps=steps, fibres=1, rate=rate)
    rates = [schedule.rate_at(step) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(rate)
    peak = rates.index(max(rates))
    assert peak <= max(1, round(0.08 * steps))
    assert all(a <= b for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[peak:]))


def test_warm_up_is_a_line_and_the_rest_half_a_cosine() -> None:
    schedule = LevelSchedule(steps=1000, fibres=1, rate=1.0)
    rates = [schedule.rate_at(step) for step in range(1000)]
    rises = [b - a for a, b in itertools.pairwise(rates[:80])]
    assert rises == pytest.approx([1 / 80] * 79)
    assert rates[80 + 460] == pytest.approx(0.5)  # half way down after half of the remaining steps
    for distance in (100, 250, 400):  # a cosine is odd about its middle
        assert rates[540 - distance] + rates[540 + distance] == pytest.approx(1.0)
    assert rates[80 + 230] == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert rates[-1] < 1e-4
