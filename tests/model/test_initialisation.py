"""Before its first step a decoder is a Gaussian of the fibres it was shown, as torch and scikit-learn see it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from cflow_ray.config import FlowConfig
from cflow_ray.model.flow import Decoder
from cflow_ray.model.initialisation import shrunk_covariance, start_standardised, start_whitened


def correlated_fibres(count: int, channels: int, seed: int = 0) -> Tensor:
    """Gaussian fibres (count, channels) with correlations, and channels of very different scale and offset."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-2, 2, channels, dtype=torch.float64)
    offset = 3 * torch.randn(channels, generator=generator, dtype=torch.float64)
    fibres = torch.randn(count, channels, generator=generator, dtype=torch.float64) @ mixing
    return ((fibres + offset) * scale).float()


Start = Callable[[Decoder, Tensor], None]

any_start = pytest.mark.parametrize("start", [start_standardised, start_whitened], ids=["standardised", "whitened"])


def started(start: Start, fibres_NC: Tensor, blocks: int = 8) -> Decoder:
    config = FlowConfig(blocks=blocks, condition_channels=8)
    decoder = Decoder(fibres_NC.shape[1], config, torch.Generator().manual_seed(0))
    start(decoder, fibres_NC)
    return decoder


def independent_likelihood(fibres_NC: Tensor, at_NC: Tensor) -> Tensor:
    """Log-likelihood per dimension of independent Gaussian channels with the fibres' means and deviations."""
    fibres = fibres_NC.double()
    return Normal(fibres.mean(0), fibres.std(0, correction=0)).log_prob(at_NC.double()).mean(1)


def correlated_likelihood(fibres_NC: Tensor, at_NC: Tensor) -> Tensor:
    """Log-likelihood per dimension under the fibres' mean, deviations and Ledoit-Wolf-shrunk correlations."""
    fibres = fibres_NC.double().numpy()
    mean, deviation = fibres.mean(0), fibres.std(0)
    correlation, _ = ledoit_wolf((fibres - mean) / deviation, assume_centered=True)
    covariance = correlation * np.outer(deviation, deviation)
    normal = MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(covariance))
    return normal.log_prob(at_NC.double()) / fibres.shape[1]


@pytest.mark.parametrize(
    ("count", "channels", "blocks"), [(2000, 2, 2), (2000, 5, 8), (500, 40, 8), (30, 40, 3)], ids=str
)
@pytest.mark.parametrize(
    ("start", "gaussian"),
    [(start_standardised, independent_likelihood), (start_whitened, correlated_likelihood)],
    ids=["standardised", "whitened"],
)
def test_likelihood_is_the_gaussians(
    start: Start, gaussian: Callable[[Tensor, Tensor], Tensor], count: int, channels: int, blocks: int
) -> None:
    fibres_NC = correlated_fibres(count, channels)
    elsewhere_NC = correlated_fibres(50, channels, seed=1)
    decoder = started(start, fibres_NC, blocks)
    condition_ND = torch.randn(len(elsewhere_NC), 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        actual = decoder(elsewhere_NC, condition_ND).double()
    expected = gaussian(fibres_NC, elsewhere_NC)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_fibres_become_white_from_a_whitened_start() -> None:
    fibres_NC = correlated_fibres(20_000, 12)
    with torch.no_grad():
        latent_NC, _ = started(start_whitened, fibres_NC).flow(fibres_NC, [torch.zeros(len(fibres_NC), 8)])
    torch.testing.assert_close(latent_NC.mean(0), torch.zeros(12), atol=1e-2, rtol=0)
    torch.testing.assert_close(torch.cov(latent_NC.T), torch.eye(12), atol=0.05, rtol=0)


@any_start
def test_the_start_does_not_depend_on_the_position(start: Start) -> None:
    fibres_NC = correlated_fibres(100, 6)
    decoder = started(start, fibres_NC)
    with torch.no_grad():
        here, there = decoder(fibres_NC, torch.zeros(100, 8)), decoder(fibres_NC, torch.ones(100, 8))
    assert torch.equal(here, there)


@any_start
def test_every_trainable_part_can_still_learn(start: Start) -> None:
    """The couplings start as the identity, yet the first steps must reach all their layers."""
    fibres_NC = correlated_fibres(200, 6)
    decoder = started(start, fibres_NC, blocks=3)
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    optimiser = torch.optim.Adam([p for p in decoder.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        (-decoder(fibres_NC, torch.randn(200, 8)).mean()).backward()
        optimiser.step()
    still = [name for name, p in decoder.named_parameters() if torch.equal(before[name], p)]
    assert all("w_perm" in name for name in still)


@pytest.mark.parametrize(("count", "channels"), [(1000, 5), (200, 30), (12, 30), (2, 3)], ids=str)
def test_shrunk_covariance_is_scikit_learns(count: int, channels: int) -> None:
    fibres_NC = correlated_fibres(count, channels).double()
    centred_NC = fibres_NC - fibres_NC.mean(0)
    expected, _ = ledoit_wolf(centred_NC.numpy(), assume_centered=True)
    np.testing.assert_allclose(
        shrunk_covariance([centred_NC[:7], centred_NC[7:]]).numpy(), expected, rtol=1e-9, atol=1e-9
    )


def test_uncorrelated_fibres_are_shrunk_to_the_sphere() -> None:
    white_NC = torch.randn(40, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(shrunk_covariance([white_NC]))
    sample = torch.linalg.eigvalsh(white_NC.T @ white_NC / 40)
    assert sample.max() > 5  # what shrinkage is for
    assert eigenvalues.min() > 0.5
    assert eigenvalues.max() < 2


@any_start
@pytest.mark.parametrize("constant", [1, 3, 6], ids=lambda n: f"{n} of 6 constant")
def test_constant_channels_give_finite_likelihoods_and_still_show_a_deviation(start: Start, constant: int) -> None:
    fibres_NC = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    fibres_NC[:, :constant] = 2.5
    decoder = started(start, fibres_NC)
    deviating_NC = fibres_NC.clone()
    deviating_NC[:, 0] += 1
    with torch.no_grad():
        usual, unusual = (decoder(rows, torch.zeros(300, 8)) for rows in (fibres_NC, deviating_NC))
    assert torch.isfinite(usual).all()
    assert torch.isfinite(unusual).all()
    assert unusual.max() < usual.min() - 1


@any_start
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4, 1e8])
def test_features_of_any_scale_give_finite_weights_and_likelihoods(start: Start, scale: float) -> None:
    fibres_NC = scale * torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    decoder = started(start, fibres_NC)
    assert all(torch.isfinite(p).all() for p in decoder.parameters())
    with torch.no_grad():
        assert torch.isfinite(decoder(fibres_NC, torch.zeros(300, 8))).all()


@any_start
@pytest.mark.parametrize("count", [1, 2, 10])
def test_fewer_fibres_than_channels_are_enough(start: Start, count: int) -> None:
    fibres_NC = correlated_fibres(count, 20)
    decoder = started(start, fibres_NC)
    with torch.no_grad():
        assert torch.isfinite(decoder(fibres_NC, torch.zeros(count, 8))).all()
