"""An encoder as an ONNX model that can be kept: scoring with it needs neither timm nor a trace of the network.

Making the default encoder from its weights takes 5 CPU-seconds and 280 MB of a process, most of it for importing timm;
reading its model takes 0.2 and 40.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cflow_ray.model.graph import EncoderGraph, Sizes
from cflow_ray.model.onnx_graph import onnx_model
from cflow_ray.model.threads import torch_threads

if TYPE_CHECKING:
    from cflow_ray.model.encoder import Encoder

CompiledEncoder = Callable[[Tensor], list[Tensor]]
"""uint8 images (B, 3, H, W) to the levels (B, C_l, h_l, w_l) of their pyramid: an Encoder, or what is as good."""

INPUT = "images"


@dataclass(frozen=True)
class EncoderModel:
    """uint8 images (B, 3, H, W) of one size to the levels (B, C_l, h_l, w_l) of their pyramid; B is 1."""

    name: str
    """Of the network."""
    size: tuple[int, int]
    """H and W."""
    content: bytes
    """ONNX, serialised."""
    features: tuple[Tensor, ...]
    """What torch makes of the `example_image`: what executes the model has to give the same."""

    @property
    def sizes(self) -> Sizes:
        """Height and width of every level."""
        return tuple((level.shape[2], level.shape[3]) for level in self.features)


def encoder_model(encoder: Encoder, size: tuple[int, int]) -> EncoderModel:
    """The model of an encoder; raises what torch's exporter raises, which is anything."""
    if not encoder.get_buffer("mean").is_cpu:
        encoder = copy.deepcopy(encoder).cpu()
    image = example_image(size)
    with torch_threads(1), torch.no_grad():
        features = tuple(level.contiguous() for level in encoder(image))
    outputs = [f"level_{number}" for number in range(len(features))]
    content = onnx_model(EncoderGraph(encoder, size), (image,), [INPUT], outputs)
    return EncoderModel(encoder.config.name, size, content, features)


def example_image(size: tuple[int, int]) -> Tensor:
    """A uint8 image (1, 3, H, W) of noise, always the same."""
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
