"""What a fit gives and a checkpoint keeps: FrEIA's decoders with all that scoring needs besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cflow_ray.config import DetectorConfig
from cflow_ray.model.detector import Detector
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.scoring import Calibration

if TYPE_CHECKING:
    from cflow_ray.model.flow import Decoder


@dataclass(frozen=True)
class Fitted:
    """The decoders of one category, level by level, as FrEIA holds them."""

    config: DetectorConfig
    decoders: tuple[Decoder, ...]
    calibration: Calibration
    region_HW: Tensor | None = None
    """Which pixels of the input count, bool; None counts all."""
    nll: tuple[float, ...] = ()
    """Held-out negative log-likelihood per dimension of each level, in nats; empty where it is not known."""

    def detector(self, encoder_digest: str = "") -> Detector:
        """The detector that scores with these weights."""
        folded = [FoldedDecoder.of(decoder) for decoder in self.decoders]
        return Detector(self.config, folded, self.calibration, encoder_digest, self.region_HW)
