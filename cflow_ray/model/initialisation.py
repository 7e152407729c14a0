"""The data-dependent starts of a decoder: a Gaussian of the level's features, written into FrEIA's own parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cflow_ray.model.flow import Decoder

# Shapes: N fibres, C channels.

_ROWS_AT_ONCE = 4096
_SMALLEST_SCALE = 1e-4
_LARGEST_SCALE = 1e4


@torch.no_grad()
def start_standardised(decoder: Decoder, fibres_NC: Tensor) -> None:
    """Make the decoder the Gaussian of independent channels with the fibres' means and deviations.

    The couplings start as the identity; block 0's scale and offset standardise the channels, and the drawn rotations
    keep that likelihood. Correlations are left to the flow. Maths and parameters stay FrEIA's.
    """
    _standardise(decoder, *_mean_and_scale(fibres_NC))


@torch.no_grad()
def start_whitened(decoder: Decoder, fibres_NC: Tensor) -> None:
    """Make the decoder the Gaussian with the fibres' mean and shrunk covariance; the flow learns what departs from it.

    As standardised, and block 0's rotation turns the channels to the principal axes of their correlation, block 1's
    scale whitens those.
    """
    mean_C, scale_C = _mean_and_scale(fibres_NC)
    _standardise(decoder, mean_C, scale_C)
    pieces = (fibres_NC[start : start + _ROWS_AT_ONCE] for start in range(0, len(fibres_NC), _ROWS_AT_ONCE))
    correlation_CC = shrunk_covariance((piece_NC.double() - mean_C) * scale_C for piece_NC in pieces)
    eigenvalues_C, eigenvectors_CC = torch.linalg.eigh(correlation_CC)
    decoder.set_rotation(0, eigenvectors_CC.T.float())
    decoder.blocks[1].global_scale.copy_(_before_softplus(eigenvalues_C.clamp_min(1e-6).rsqrt())[None])


def _mean_and_scale(fibres_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and reciprocal deviation (C,) of every channel in float64; no scale is far above the others."""
    std_C, mean_C = (figure_C.double() for figure_C in torch.std_mean(fibres_NC, 0, correction=0))
    return mean_C, 1 / std_C.clamp_min(max(_SMALLEST_SCALE * float(std_C.max()), 1 / _LARGEST_SCALE))


def _standardise(decoder: Decoder, mean_C: Tensor, scale_C: Tensor) -> None:
    for block in decoder.blocks:
        block.subnet[2].weight.zero_()
        block.subnet[2].bias.zero_()
    first = decoder.blocks[0]
    first.global_scale.copy_(_before_softplus(scale_C)[None])
    first.global_offset.copy_((-mean_C * scale_C)[None])


def shrunk_covariance(pieces: Iterable[Tensor]) -> Tensor:
    """Covariance (C, C) shrunk towards a multiple of the identity by Ledoit and Wolf's (2004) optimal weight.

    Of centred fibres (n, C), which come in pieces: all at once in float64 are gigabytes of a wide level.
    """
    count, products_CC, squares_CC = 0, torch.zeros(()), torch.zeros(())
    for piece_nC in pieces:
        count += len(piece_nC)
        products_CC = products_CC + piece_nC.T @ piece_nC
        squares_CC = squares_CC + piece_nC.square().T @ piece_nC.square()
    covariance_CC, squares_CC = products_CC / count, squares_CC / count
    channels = len(covariance_CC)
    target = covariance_CC.diagonal().mean()
    noise = (squares_CC - covariance_CC.square()).sum() / count
    distance = (covariance_CC - target * torch.eye(channels, dtype=covariance_CC.dtype)).square().sum()
    weight = float((noise / distance.clamp_min(1e-12)).clamp(0, 1))
    return (1 - weight) * covariance_CC + weight * target * torch.eye(channels, dtype=covariance_CC.dtype)


def _before_softplus(scale_C: Tensor) -> Tensor:
    """FrEIA's parameter whose activation, 0.1 softplus(beta = 0.5), is the given scale."""
    raised = 5 * scale_C
    return (2 * (raised + torch.log(-torch.expm1(-raised)))).float()
