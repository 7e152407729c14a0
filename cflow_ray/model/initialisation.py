"""The data-dependent start of a decoder: the level's channels standardised, in FrEIA's own parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow_ray.model.flow import Decoder

# Shapes: N fibres, C channels.

_SMALLEST_SCALE = 1e-4
_LARGEST_SCALE = 1e4


@torch.no_grad()
def initialise_from_data(decoder: Decoder, fibres_NC: Tensor) -> None:
    """Make the decoder the Gaussian of independent channels with the fibres' means and deviations.

    The couplings start as the identity; block 0's scale and offset standardise the channels, which the drawn rotations
    keep so. Correlations are left to the flow: to whiten the channels as well (eigenvectors of their shrunk correlation
    in block 0, its eigenvalues in block 1) starts at a far higher likelihood, but ends at lower image AUROCs
    (benchmarks/README.md, Accuracy).
    """
    std_C, mean_C = torch.std_mean(fibres_NC, 0, correction=0)
    scale_C = 1 / std_C.clamp_min(max(_SMALLEST_SCALE * float(std_C.max()), 1 / _LARGEST_SCALE))
    for block in decoder.blocks:
        block.subnet[2].weight.zero_()
        block.subnet[2].bias.zero_()
    first = decoder.blocks[0]
    first.global_scale.copy_(_before_softplus(scale_C)[None])
    first.global_offset.copy_((-mean_C * scale_C)[None])


def _before_softplus(scale_C: Tensor) -> Tensor:
    """FrEIA's parameter whose activation, 0.1 softplus(beta = 0.5), is the given scale."""
    raised = 5 * scale_C
    return 2 * (raised + torch.log(-torch.expm1(-raised)))
