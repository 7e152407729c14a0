"""Encoder, detector and both with the score as graphs without control flow: what a compiling runtime is given.

The arithmetic is that of `Encoder`, `FoldedDecoder` and `Detector`, which are the oracles. Every size but the batch's is
a constant. There are half as many nodes as in a trace of `FoldedDecoder.likelihood`, so that a detector is traced in a
third of the time (0.6 CPU-seconds), and gains a tenth when it runs. All that a fit decides, the biases of the locations
and the peaks too, is a buffer: detectors of one structure have one graph, and differ in the values of these.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cflow_ray.model.detector import Detector
from cflow_ray.model.folded import FoldedBlock, FoldedDecoder
from cflow_ray.model.parameters import halves
from cflow_ray.model.region import covered, cut_out
from cflow_ray.model.scoring import anomaly_map, image_scores

if TYPE_CHECKING:
    from cflow_ray.model.encoder import Encoder

# Shapes: B images, level l with C channels (C_p passive + C_a active) and h x w locations (P of them), H hidden units,
# H x W pixels of the network's input.

Sizes = tuple[tuple[int, int], ...]
"""Height and width of every level's feature map."""


class EncoderGraph(nn.Module):
    """uint8 images (B, 3, H, W) to the levels (B, C, h, w) of their pyramid."""

    def __init__(self, encoder: Encoder, size: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = _of_fixed_size(encoder, size)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        """The pyramid of images, as one pass."""
        return tuple(self.encoder.encode(images_B3HW))


class _BlockGraph(nn.Module):
    """The weights of a block; the last one scales where the others rotate."""

    first_CpH: Tensor
    bias_PH: Tensor
    stretch_HCa: Tensor
    shift_HCa: Tensor
    stretch_bias_Ca: Tensor
    shift_bias_Ca: Tensor
    scale_C: Tensor
    rotation_CC: Tensor | None
    offset_C: Tensor

    def __init__(self, block: FoldedBlock, bias_PH: Tensor) -> None:
        super().__init__()
        self.register_buffer("first_CpH", block.first_CpH)
        self.register_buffer("bias_PH", bias_PH)
        self.register_buffer("stretch_HCa", block.stretch_HCa)
        self.register_buffer("shift_HCa", block.shift_HCa)
        self.register_buffer("stretch_bias_Ca", block.stretch_bias_Ca)
        self.register_buffer("shift_bias_Ca", block.shift_bias_Ca)
        self.register_buffer("scale_C", block.scale_C if block.rotation_CC is None else None)
        self.register_buffer("rotation_CC", block.rotation_CC)
        self.register_buffer("offset_C", block.offset_C)


class LevelGraph(nn.Module):
    """Features (B, C, h, w) of one level to log-likelihoods per dimension (B, h, w)."""

    constant: Tensor

    def __init__(self, decoder: FoldedDecoder, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size
        self._channels = decoder.channels
        self._clamp = decoder.config.clamp
        biases = decoder.new_position_biases(*size)
        self.blocks = nn.ModuleList(
            _BlockGraph(block, bias_PH) for block, bias_PH in zip(decoder.blocks, biases, strict=True)
        )
        self.register_buffer("constant", torch.tensor(decoder.constant, dtype=torch.float32))
        self.bytes = decoder.bytes + sum(bias.numel() * bias.element_size() for bias in biases)
        """Memory of the weights and of the biases of the locations."""

    def forward(self, features_BChw: Tensor) -> Tensor:
        """As `FoldedDecoder.forward`."""
        height, width = self._size
        passive, _ = halves(self._channels)
        x_BPC = features_BChw.reshape(-1, self._channels, height * width).transpose(1, 2)
        log_det_BPCa: Tensor | None = None
        for block in cast(list[_BlockGraph], list(self.blocks)):
            passive_BPC, active_BPC = x_BPC[:, :, :passive], x_BPC[:, :, passive:]
            hidden_BPH = torch.relu(torch.matmul(passive_BPC, block.first_CpH) + block.bias_PH)
            stretch_BPC = torch.matmul(hidden_BPH, block.stretch_HCa) + block.stretch_bias_Ca
            shift_BPC = torch.matmul(hidden_BPH, block.shift_HCa) + block.shift_bias_Ca
            log_stretch_BPC = torch.tanh(stretch_BPC) * self._clamp
            log_det_BPCa = log_stretch_BPC if log_det_BPCa is None else log_det_BPCa + log_stretch_BPC
            x_BPC = torch.cat([passive_BPC, active_BPC * torch.exp(log_stretch_BPC) + shift_BPC], dim=2)
            x_BPC = x_BPC * block.scale_C if block.rotation_CC is None else torch.matmul(x_BPC, block.rotation_CC)
            x_BPC = x_BPC + block.offset_C
        assert log_det_BPCa is not None
        likelihood_BP = (self.constant + log_det_BPCa.sum(2) - 0.5 * (x_BPC * x_BPC).sum(2)) / self._channels
        return likelihood_BP.reshape(-1, height, width)


class DetectorGraph(nn.Module):
    """A pyramid, as one argument a level, to anomaly maps (B, H, W); of tiles where the detector scores in tiles."""

    def __init__(self, detector: Detector, sizes: Sizes) -> None:
        super().__init__()
        self._config = detector.config
        decoders = cast(list[FoldedDecoder], list(detector.decoders))
        self.channels = [decoder.channels for decoder in decoders]
        self.sizes = sizes
        self.levels = nn.ModuleList(LevelGraph(decoder, size) for decoder, size in zip(decoders, sizes, strict=True))
        for level, peak in enumerate(detector.calibration.peaks):
            self.register_buffer(f"peak_{level}", torch.tensor(peak, dtype=torch.float32))
        self.structure: Hashable = (
            *self.channels,
            sizes,
            self._config.size,
            self._config.level_weights,
            self._config.flow,
        )
        """Detectors for which it is the same have the same graph, but for the values of their buffers."""

    @property
    def bytes(self) -> int:
        """Memory of the weights and of the biases of the locations."""
        return sum(cast(LevelGraph, level).bytes for level in self.levels)

    def likelihoods(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """As `Detector.likelihoods`."""
        return [level(features) for level, features in zip(self.levels, pyramid, strict=True)]

    def maps(self, likelihoods: Sequence[Tensor]) -> Tensor:
        """Maps (B, H, W) from each level's log-likelihoods (B, h, w)."""
        peaks = [self.get_buffer(f"peak_{level}") for level in range(len(self.levels))]
        return anomaly_map(likelihoods, peaks, self._config.size, self._config.level_weights)

    def forward(self, *pyramid: Tensor) -> Tensor:
        """As `Detector.maps`."""
        return self.maps(self.likelihoods(pyramid))


class FindingGraph(nn.Module):
    """uint8 images (B, 3, H, W) to whole maps (B, H, W), scores (B,), and the levels' log-likelihoods (B, h, w)."""

    def __init__(self, encoder: Encoder, detector: Detector, sizes: Sizes) -> None:
        super().__init__()
        assert detector.config.tiling is None
        self.encoder = EncoderGraph(encoder, detector.config.size)
        self.detector = DetectorGraph(detector, sizes)
        self._config = detector.config
        self._region_HW = detector.region_HW

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        """As `DetectorBank.score_batch` for one detector."""
        likelihoods = self.detector.likelihoods(self.encoder(covered(images_B3HW, self._region_HW)))
        maps_BHW = cut_out(self.detector.maps(likelihoods), self._region_HW, self._config.smoothing)
        pixels_BP = maps_BHW.flatten(1)
        if self._region_HW is not None:
            pixels_BP = pixels_BP[:, self._region_HW.flatten().nonzero()[:, 0]]
        return maps_BHW, image_scores(pixels_BP, self._config.top_fraction), *likelihoods


def _of_fixed_size(encoder: Encoder, size: tuple[int, int]) -> Encoder:
    """An encoder for one size only, where it is a ViT: those interpolate the embedding of positions with every image,
    which ONNX cannot."""
    if not getattr(getattr(encoder.network, "model", None), "dynamic_img_size", False):
        return encoder
    encoder = copy.deepcopy(encoder)
    network = cast(Any, encoder.network.model)
    padded = [
        math.ceil(side / of_patch) * of_patch
        for side, of_patch in zip(size, network.patch_embed.patch_size, strict=True)
    ]
    network.set_input_size(img_size=padded)  # images of `size` are padded to whole patches in its forward pass
    return encoder
