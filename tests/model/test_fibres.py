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
    assert len(fibres) == images * side * side
    for drawn, condition_pD in (
        fibres.draw(count, torch.Generator().manual_seed(seed)),
        fibres.spread(count, torch.Generator().manual_seed(seed)),
    ):
        image, place = drawn.long().unbind(2)
        values = (image * side * side + place).flatten()
        assert len(values.unique()) == len(values) <= max(count, min(64, side * side))
        assert (place == place[0]).all()
        assert (image == image[:, :1]).all()
        torch.testing.assert_close(condition_pD, position_encoding(8, side, side)[place[0]])


def test_a_spread_takes_from_every_image():
    fibres = fibres_of(torch.randn(10, 3, 16, 16))
    drawn, _ = fibres.spread(200, torch.Generator().manual_seed(0))
    assert drawn.shape == (10, 20, 3)
