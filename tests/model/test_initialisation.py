"""Before its first step a decoder is the Gaussian of independent channels that torch makes of the fibres it was shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from cflow_ray.config import FlowConfig
from cflow_ray.model.flow import Decoder
from cflow_ray.model.initialisation import initialise_from_data


def correlated_fibres(count: int, channels: int, seed: int = 0) -> Tensor:
    """Gaussian fibres (count, channels) with correlations, and channels of very different scale and offset."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-2, 2, channels, dtype=torch.float64)
    offset = 3 * torch.randn(channels, generator=generator, dtype=torch.float64)
    fibres = torch.randn(count, channels, generator=generator, dtype=torch.float64) @ mixing
    return ((fibres + offset) * scale).float()


def initialised(fibres_NC: Tensor, blocks: int = 8) -> Decoder:
    config = FlowConfig(blocks=blocks, condition_channels=8)
    decoder = Decoder(fibres_NC.shape[1], config, torch.Generator().manual_seed(0))
    initialise_from_data(decoder, fibres_NC)
    return decoder


def gaussian_likelihood(fibres_NC: Tensor, at_NC: Tensor) -> Tensor:
    """Log-likelihood per dimension of independent Gaussian channels with the fibres' means and deviations."""
    fibres = fibres_NC.double()
    return Normal(fibres.mean(0), fibres.std(0, correction=0)).log_prob(at_NC.double()).mean(1)


@pytest.mark.parametrize(
    ("count", "channels", "blocks"), [(2000, 2, 2), (2000, 5, 8), (500, 40, 8), (30, 40, 3)], ids=str
)
def test_likelihood_is_the_independent_gaussians(count: int, channels: int, blocks: int) -> None:
    fibres_NC = correlated_fibres(count, channels)
    elsewhere_NC = correlated_fibres(50, channels, seed=1)
    decoder = initialised(fibres_NC, blocks)
    condition_ND = torch.randn(len(elsewhere_NC), 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        actual = decoder(elsewhere_NC, condition_ND).double()
    expected = gaussian_likelihood(fibres_NC, elsewhere_NC)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_the_shown_fibres_become_as_likely_as_standard_ones() -> None:
    """Per dimension a standardised channel has the mean square 1, which no rotation changes."""
    fibres_NC = correlated_fibres(20_000, 12)
    with torch.no_grad():
        latent_NC, _ = initialised(fibres_NC).flow(fibres_NC, [torch.zeros(len(fibres_NC), 8)])
    torch.testing.assert_close(latent_NC.mean(0), torch.zeros(12), atol=1e-2, rtol=0)
    assert float(latent_NC.square().mean()) == pytest.approx(1, abs=1e-3)


def test_the_start_does_not_depend_on_the_position() -> None:
    fibres_NC = correlated_fibres(100, 6)
    decoder = initialised(fibres_NC)
    with torch.no_grad():
        here, there = decoder(fibres_NC, torch.zeros(100, 8)), decoder(fibres_NC, torch.ones(100, 8))
    assert torch.equal(here, there)


def test_every_trainable_part_can_still_learn() -> None:
    """The couplings start as the identity, yet the first steps must reach all their layers."""
    fibres_NC = correlated_fibres(200, 6)
    decoder = initialised(fibres_NC, blocks=3)
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    optimiser = torch.optim.Adam([p for p in decoder.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        (-decoder(fibres_NC, torch.randn(200, 8)).mean()).backward()
        optimiser.step()
    still = [name for name, p in decoder.named_parameters() if torch.equal(before[name], p)]
    assert all("w_perm" in name for name in still)


@pytest.mark.parametrize("constant", [1, 3, 6], ids=lambda n: f"{n} of 6 constant")
def test_constant_channels_give_finite_likelihoods_and_still_show_a_deviation(constant: int) -> None:
    fibres_NC = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    fibres_NC[:, :constant] = 2.5
    decoder = initialised(fibres_NC)
    deviating_NC = fibres_NC.clone()
    deviating_NC[:, 0] += 1
    with torch.no_grad():
        usual, unusual = (decoder(rows, torch.zeros(300, 8)) for rows in (fibres_NC, deviating_NC))
    assert torch.isfinite(usual).all()
    assert torch.isfinite(unusual).all()
    assert unusual.max() < usual.min() - 1


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4, 1e8])
def test_features_of_any_scale_give_finite_weights_and_likelihoods(scale: float) -> None:
    fibres_NC = scale * torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    decoder = initialised(fibres_NC)
    assert all(torch.isfinite(p).all() for p in decoder.parameters())
    with torch.no_grad():
        assert torch.isfinite(decoder(fibres_NC, torch.zeros(300, 8))).all()


@pytest.mark.parametrize("count", [1, 2, 10])
def test_fewer_fibres_than_channels_are_enough(count: int) -> None:
    fibres_NC = correlated_fibres(count, 20)
    decoder = initialised(fibres_NC)
    with torch.no_grad():
        assert torch.isfinite(decoder(fibres_NC, torch.zeros(count, 8))).all()
