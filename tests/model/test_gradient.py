"""The gradient by hand against autograd through the grouped likelihood, and what shares out the vector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import FlowConfig
from cflow_ray.model.fitted_parameters import FittedParameters
from cflow_ray.model.flow import Decoder
from cflow_ray.model.gradient import Gradient, GradientByAutograd, GradientByHand
from cflow_ray.model.grouped import grouped_likelihood
from tests.model.conftest import random_decoder


def draw(images: int, positions: int, channels: int, condition: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fibres_BPC = torch.randn(images, positions, channels, generator=generator, dtype=torch.float64)
    return fibres_BPC, torch.randn(positions, condition, generator=generator, dtype=torch.float64)


def expected(decoder: Decoder, fibres_BPC: Tensor, condition_PD: Tensor, of: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient, by parameter, of a decoder with parameters of its own."""
    loss = -functional.logsigmoid(grouped_likelihood(decoder, fibres_BPC, condition_PD)).sum() / of
    fitted = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    return loss.detach(), dict(zip(fitted, torch.autograd.grad(loss, list(fitted.values())), strict=True))


def found(decoder: Decoder, parameters: FittedParameters) -> dict[str, Tensor]:
    """The gradient in the vector, by parameter: what moves when the vector does."""
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    parameters.vector.data += parameters.vector_gradient
    moved = {name: parameter.detach() - before[name] for name, parameter in decoder.named_parameters()}
    parameters.vector.data -= parameters.vector_gradient
    return moved


@given(
    channels=st.integers(2, 9),
    condition=st.sampled_from([0, 8]),
    blocks=st.integers(2, 4),
    images=st.integers(1, 4),
    positions=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_by_hand_is_by_autograd(channels: int, condition: int, blocks: int, images: int, positions: int, seed: int):
    config = FlowConfig(blocks=blocks, condition_channels=condition)
    decoder, twin = (random_decoder(channels, config, seed) for _ in range(2))
    fibres_BPC, condition_PD = draw(images, positions, channels, condition, seed + 1)
    loss, gradient = expected(twin, fibres_BPC, condition_PD, of=7)
    parameters = FittedParameters(decoder)
    by_hand = GradientByHand(decoder, parameters).compute(fibres_BPC, condition_PD, of=7)
    torch.testing.assert_close(by_hand, loss, rtol=1e-12, atol=1e-12)
    moved = found(decoder, parameters)
    for name, wanted in gradient.items():
        torch.testing.assert_close(moved[name], wanted, rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", [GradientByHand, lambda *of: GradientByAutograd(*of, torch.float64)])
def test_a_gradient_takes_the_place_of_the_last_one(kind) -> None:
    """Of fibres of another shape too."""
    config = FlowConfig(blocks=2, condition_channels=8)
    decoder, twin = random_decoder(5, config), random_decoder(5, config)
    parameters = FittedParameters(decoder)
    gradient: Gradient = kind(decoder, parameters)
    for images, positions in ((3, 4), (3, 4), (2, 5)):
        fibres_BPC, condition_PD = draw(images, positions, 5, 8, seed=images)
        gradient.compute(fibres_BPC, condition_PD, of=images * positions)
        wanted = expected(twin, fibres_BPC, condition_PD, of=images * positions)[1]
        moved = found(decoder, parameters)
        for name in wanted:
            torch.testing.assert_close(moved[name], wanted[name], rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", [GradientByHand, lambda *of: GradientByAutograd(*of, torch.bfloat16)])
def test_a_share_without_fibres_has_no_part_in_the_gradient(kind) -> None:
    """Of a team, a member has none where there are fewer positions than members."""
    config = FlowConfig(blocks=2, condition_channels=8)
    decoder = random_decoder(5, config)
    parameters = FittedParameters(decoder)
    parameters.vector_gradient.fill_(3)
    fibres_BPC, condition_PD = draw(3, 1, 5, 8)
    assert kind(decoder, parameters).compute(fibres_BPC[:, :0], condition_PD[:0], of=3) == 0
    assert not parameters.vector_gradient.any()


def test_the_decoder_is_what_the_vector_says() -> None:
    decoder = random_decoder(5, FlowConfig(blocks=3, condition_channels=8))
    fitted = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    parameters = FittedParameters(decoder)
    assert len(parameters.vector) == sum(parameter.numel() for parameter in fitted)
    with torch.no_grad():
        parameters.vector.fill_(2)
    assert all((parameter == 2).all() for parameter in fitted)
    assert not any((block.w_perm == 2).all() for block in decoder.blocks)
