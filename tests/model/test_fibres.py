"""Drawing fibres: rows of the right image and place, without repetition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cflow_ray.model.fibres import Fibres


@given(images=st.integers(1, 6), side=st.integers(1, 12), count=st.integers(1, 600), seed=st.integers(0, 99))
def test_a_draw_holds_distinct_fibres_with_their_conditions(images: int, side: int, count: int, seed: int):
    features_IChw = torch.arange(images * side * side, dtype=torch.float32).view(images, 1, side, side)
    fibres = Fibres(features_IChw, condition_channels=8)
    assert len(fibres) == images * side * side
    for drawn, condition_pD in (
        fibres.draw(count, torch.Generator().manual_seed(seed)),
        fibres.spread(count, torch.Generator().manual_seed(seed)),
    ):
        values = drawn.flatten().long()
        assert len(values.unique()) == len(values) <= max(count, min(64, side * side))
        places = values.view(drawn.shape[:2]) % (side * side)
        assert (places == places[0]).all()
        torch.testing.assert_close(condition_pD, fibres.condition_PD[places[0]])


def test_a_spread_takes_from_every_image():
    fibres = Fibres(torch.randn(10, 3, 16, 16), condition_channels=8)
    drawn, _ = fibres.spread(200, torch.Generator().manual_seed(0))
    assert drawn.shape == (10, 20, 3)
