"""Fixtures of the model's tests: the pretrained encoder, and decoders whose every parameter is at work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig, FlowConfig, TilingConfig
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.flow import Decoder

MakeDecoder = Callable[..., Decoder]


@pytest.fixture(scope="session")
def lite0(lite0_state: dict[str, Tensor]) -> Encoder:
    """The default encoder with its real weights."""
    return Encoder(EncoderConfig(), lite0_state)


@pytest.fixture(scope="session")
def make_decoder() -> MakeDecoder:
    """Decoders whose scales, offsets, couplings and rotations all differ from their start, as after a fit."""

    def make(channels: int, blocks: int = 3, condition_channels: int = 8, seed: int = 0) -> Decoder:
        generator = torch.Generator().manual_seed(seed)
        decoder = Decoder(channels, FlowConfig(blocks=blocks, condition_channels=condition_channels), generator)
        with torch.no_grad():
            for block in decoder.blocks:
                block.global_scale.add_(2 * torch.randn(block.global_scale.shape, generator=generator))
                block.global_offset.add_(torch.randn(block.global_offset.shape, generator=generator))
                block.subnet[2].weight.mul_(10)
        return decoder

    return make


def random_decoder(channels: int, config: FlowConfig, seed: int = 0) -> Decoder:
    """A decoder no parameter of which is at its start, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(channels, config, generator).double()
    for block in decoder.blocks:
        block.global_scale.data += torch.randn(block.global_scale.shape, generator=generator)
        block.global_offset.data += torch.randn(block.global_offset.shape, generator=generator)
    return decoder


SETTINGS: dict[str, dict[str, object]] = {
    "unconditional": {"flow": FlowConfig(blocks=2, condition_channels=0)},
    "more blocks": {"flow": FlowConfig(blocks=5, condition_channels=8)},
    "longer condition": {"flow": FlowConfig(blocks=2, condition_channels=32)},
    "level weights": {"level_weights": (0.25, 2.0)},
    "smoothing": {"smoothing": 4.0},
    "maximum": {"top_fraction": 0.0},
    "mean": {"top_fraction": 1.0},
    "tiling": {"tiling": TilingConfig(overlap=0.5)},
    "not square": {"input_size": (64, 96)},
    "region": {},
}
"""Settings of a detector that change how it scores; the region goes beside them."""


def drawn_region(size: tuple[int, int]) -> Tensor:
    """A region of interest in many pieces (H, W), bool."""
    return torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.3
