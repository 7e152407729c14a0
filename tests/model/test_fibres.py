"""Drawing fibres: rows of the right image and place, without repetition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cflow_ray.model.features import Features
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.position import position_encoding


def numbered(images: int, height: int, width: int) -> Tensor:
    """Maps (images, 2, h, w) whose fibres say their image and their place, exactly in half precision."""
    image = torch.arange(images).view(-1, 1, 1).expand(images, height, width)
    place = torch.arange(height * width).view(1, height, width).expand(images, height, width)
    return torch.stack([image, place], dim=1).float()


def fibres_of(maps_IChw: Tensor, inside_P: Tensor | None = None) -> Fibres:
    level = Features.of_pyramid([maps_IChw], (64, 64)).levels[0]
    return Fibres(level, range(len(maps_IChw)), 8, inside_P)


@given(images=st.integers(1, 6), side=st.integers(1, 12), count=st.integers(1, 600), seed=st.integers(0, 99))
def test_a_draw_holds_distinct_fibres_with_their_conditions(images: int, side: int, count: int, seed: int):
    fibres = fibres_of(numbered(images, side, side))
    assert fibres.tiles * fibres.positions == images * side * side
    for drawn, condition_pD in (
        fibres.draw(count, torch.Generator().manual_seed(seed), positions=64),
        fibres.spread(count, torch.Generator().manual_seed(seed)),
    ):
        image, place = drawn.long().unbind(2)
        values = (image * side * side + place).flatten()
        assert len(values.unique()) == len(values) <= max(count, min(64, side * side))
        assert len(values) >= min(count, fibres.tiles * fibres.positions) // 2
        assert (place == place[0]).all()
        assert (image == image[:, :1]).all()
        torch.testing.assert_close(condition_pD, position_encoding(8, side, side)[place[0]])


def test_a_spread_takes_from_every_image():
    fibres = fibres_of(torch.randn(10, 3, 16, 16))
    drawn, _ = fibres.spread(400, torch.Generator().manual_seed(0))
    assert drawn.shape == (10, 40, 3)


def test_a_spread_over_very_many_images_does_not_come_down_to_a_few_positions():
    fibres = fibres_of(torch.randn(500, 2, 8, 8))
    drawn, _ = fibres.spread(1024, torch.Generator().manual_seed(0))
    assert drawn.shape == (32, 32, 2)


def test_of_few_images_a_draw_takes_more_positions():
    fibres = fibres_of(torch.randn(5, 2, 16, 16))
    drawn, condition_pD = fibres.draw(512, torch.Generator().manual_seed(0), positions=64)
    assert drawn.shape == (5, 102, 2)
    assert condition_pD.shape == (102, 8)


@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    inside=st.sets(st.integers(0, 80), min_size=1),
    seed=st.integers(0, 99),
)
def test_only_positions_inside_the_region_are_drawn(sides: tuple[int, int], inside: set[int], seed: int):
    places = {place % (sides[0] * sides[1]) for place in inside}
    inside_P = torch.zeros(sides[0] * sides[1], dtype=torch.bool)
    inside_P[list(places)] = True
    fibres = fibres_of(numbered(3, *sides), inside_P)
    assert fibres.tiles * fibres.positions == 3 * len(places)
    generator = torch.Generator().manual_seed(seed)
    drawn, condition_pD = fibres.draw(10_000, generator, positions=100)
    assert set(drawn[..., 1].flatten().tolist()) == places
    torch.testing.assert_close(condition_pD, position_encoding(8, *sides)[drawn[0, :, 1].long()])
    (shuffled,) = fibres.shuffled([0, 2], 10_000, generator)
    assert {tuple(row) for row in shuffled[0].tolist()} == {(image, place) for image in (0, 2) for place in places}


def test_fibres_are_those_of_the_tiles_that_were_chosen():
    level = Features.of_pyramid([numbered(6, 2, 3)], (64, 64)).levels[0]
    fibres = Fibres(level, [4, 1], 8)
    drawn, _ = fibres.draw(1000, torch.Generator().manual_seed(0), positions=64)
    assert sorted(drawn[:, 0, 0].tolist()) == [1, 4]
    assert {tile for batch in fibres.batches(1, torch.Generator().manual_seed(0)) for tile in batch} == {1, 4}


@given(images=st.integers(1, 40), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_batches_hold_no_image_twice_and_drop_a_smaller_last_one(images: int, size: int, seed: int):
    batches = fibres_of(numbered(images, 1, 1)).batches(size, torch.Generator().manual_seed(seed))
    chosen = [image for batch in batches for image in batch]
    assert len(chosen) == len(set(chosen)) == max(images - images % size, images if images < size else 0)
    assert {len(batch) for batch in batches} == {min(size, images)}


@given(tiles=st.integers(1, 5), side=st.integers(1, 6), count=st.integers(1, 200), seed=st.integers(0, 99))
def test_shuffled_fibres_come_once_each_with_their_conditions_less_a_smaller_last_draw(
    tiles: int, side: int, count: int, seed: int
):
    fibres = fibres_of(numbered(5, side, side))
    draws = list(fibres.shuffled(range(tiles), count, torch.Generator().manual_seed(seed)))
    available = tiles * side * side
    size = min(count, available)
    assert [len(rows) for rows, _ in draws] == [size] * (available // size)
    rows_NC = torch.cat([rows for rows, _ in draws])
    assert len({tuple(row) for row in rows_NC.tolist()}) == len(rows_NC)
    assert set(rows_NC[:, 0].tolist()) <= set(range(tiles))
    condition_ND = torch.cat([condition for _, condition in draws])
    torch.testing.assert_close(condition_ND, position_encoding(8, side, side)[rows_NC[:, 1].long()])


def test_the_generator_decides_the_order_of_everything():
    fibres = fibres_of(numbered(9, 4, 4))

    def orders(seed: int) -> list[object]:
        generator = torch.Generator().manual_seed(seed)
        draws = [
            fibres.draw(50, generator, positions=64)[0],
            *(rows for rows, _ in fibres.shuffled(range(9), 20, generator)),
        ]
        return [fibres.batches(2, generator), torch.cat([rows.flatten() for rows in draws]).tolist()]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
