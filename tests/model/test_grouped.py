"""The grouped likelihood against FrEIA's own forward, in value and in gradient."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cflow_ray.config import FlowConfig
from cflow_ray.model.grouped import grouped_likelihood
from tests.model.conftest import random_decoder


@given(
    channels=st.integers(2, 9),
    blocks=st.integers(2, 4),
    images=st.integers(1, 4),
    positions=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_it_is_what_freia_gives(channels: int, blocks: int, images: int, positions: int, seed: int):
    decoder = random_decoder(channels, FlowConfig(blocks=blocks, condition_channels=8), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    fibres_BPC = torch.randn(images, positions, channels, generator=generator, dtype=torch.float64)
    condition_PD = torch.randn(positions, 8, generator=generator, dtype=torch.float64)
    by_freia = decoder(fibres_BPC.flatten(0, 1), condition_PD.repeat(images, 1)).view(images, positions)
    torch.testing.assert_close(grouped_likelihood(decoder, fibres_BPC, condition_PD), by_freia, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_freia():
    decoder, twin = (random_decoder(7, FlowConfig(blocks=3, condition_channels=8)) for _ in range(2))
    fibres_BPC, condition_PD = torch.randn(3, 5, 7).double(), torch.randn(5, 8).double()
    grouped_likelihood(decoder, fibres_BPC, condition_PD).mean().backward()
    twin(fibres_BPC.flatten(0, 1), condition_PD.repeat(3, 1)).mean().backward()
    for (name, ours), theirs in zip(decoder.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
