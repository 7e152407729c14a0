"""One category's detector: pyramids in, maps and scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cflow_ray.config import DetectorConfig
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.region import cut_out
from cflow_ray.model.scoring import Calibration, anomaly_map, image_scores
from cflow_ray.model.tiling import Layout

# Shapes: T images or tiles, C_l channels and h_l x w_l locations of level l, h x w pixels of the network's input,
# H x W pixels of a whole image's map.


@dataclass(frozen=True)
class Finding:
    """What a detector says of one image."""

    score: float
    map_HW: NDArray[np.float32]


class Detector(nn.Module):
    """The folded decoders of one category with their calibration. Holds no encoder."""

    region_HW: Tensor | None

    def __init__(
        self,
        config: DetectorConfig,
        decoders: Sequence[FoldedDecoder],
        calibration: Calibration,
        encoder_digest: str = "",
        region_HW: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder_digest = encoder_digest
        self.decoders = nn.ModuleList(decoders)
        self.calibration = calibration
        self.register_buffer("region_HW", region_HW)
        self.eval().requires_grad_(False)

    def likelihoods(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Log-likelihoods per dimension (T, h_l, w_l) of every level's features (T, C_l, h_l, w_l), in nats."""
        decoders = cast(list[FoldedDecoder], list(self.decoders))
        return [decoder(features) for decoder, features in zip(decoders, pyramid, strict=True)]

    def maps(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Anomaly maps (T, h, w) in [0, 1) of images or tiles at the input size."""
        return anomaly_map(
            self.likelihoods(pyramid), self.calibration.peaks, self.config.size, self.config.level_weights
        )

    def whole(self, maps_Thw: Tensor, layout: Layout) -> Tensor:
        """One image's map (H, W) from those of its tiles: blended, smoothed, and 0 outside the region of interest."""
        return self.finished(layout.blend(maps_Thw))

    def finished(self, map_HW: Tensor) -> Tensor:
        """The same from an image's blended map."""
        return cut_out(map_HW[None], self.region_HW, self.config.smoothing)[0]

    def score(self, map_HW: Tensor) -> float:
        """The score of an image in [0, 1) from its whole map."""
        pixels_P = map_HW.flatten() if self.region_HW is None else map_HW[self.region_HW]
        return float(image_scores(pixels_P[None], self.config.top_fraction)[0])

    def make_position_biases(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Make now what the first pass over levels of these sizes would, so that `bytes` grows no more by it."""
        for decoder, size in zip(self.decoders, sizes, strict=True):
            cast(FoldedDecoder, decoder).position_biases(*size)

    @property
    def bytes(self) -> int:
        """Memory of the weights, and of what was computed from them to score faster."""
        return sum(cast(FoldedDecoder, decoder).bytes for decoder in self.decoders)
