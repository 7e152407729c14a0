"""A category's detector, and the bank that scores mixed batches with one encoder pass."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cflow_ray.config import DetectorConfig, EncoderConfig
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.flow import Decoder
from cflow_ray.model.grouped import level_likelihood
from cflow_ray.model.scoring import Calibration, anomaly_map, image_scores

# Shapes: B images, C_l channels and h_l x w_l locations of level l, H x W pixels of the input.


class Detector(nn.Module):
    """The decoders of one category with their calibration: pyramids in, maps and scores out. Holds no encoder."""

    def __init__(
        self, config: DetectorConfig, decoders: Sequence[Decoder], calibration: Calibration, encoder_digest: str = ""
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder_digest = encoder_digest
        self.decoders = nn.ModuleList(decoders)
        self.calibration = calibration
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def likelihoods(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Log-likelihoods per dimension (B, h_l, w_l) of every level's features (B, C_l, h_l, w_l), in nats."""
        decoders = cast(list[Decoder], list(self.decoders))
        return [level_likelihood(decoder, features) for decoder, features in zip(decoders, pyramid, strict=True)]

    def maps(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Anomaly maps (B, H, W) in [0, 1) at the input size."""
        side = self.config.input_size
        return anomaly_map(self.likelihoods(pyramid), self.calibration.peaks, (side, side))

    def scores(self, map_BHW: Tensor) -> Tensor:
        """Image scores (B,) in [0, 1) of maps."""
        return image_scores(map_BHW, self.config.top_fraction)

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parameters())


@dataclass(frozen=True)
class Finding:
    """What a detector says of one image."""

    score: float
    map_HW: NDArray[np.float32]


Key = TypeVar("Key", bound=Hashable)


class DetectorBank(Generic[Key]):
    """Many categories behind one encoder: a mixed batch takes one encoder pass, then each detector its images.

    `load_detector` gives the detector of a key (a category, or a category and a version), `load_encoder` the network
    of a configuration and a digest of weights; both are called once and kept. Detectors beyond `capacity_bytes` leave,
    least recently used first; the one in use always stays. Calls from several threads are serialised.
    """

    def __init__(
        self,
        load_detector: Callable[[Key], Detector],
        load_encoder: Callable[[EncoderConfig, str], Encoder],
        capacity_bytes: int = 2 * 2**30,
        device: str = "cpu",
    ) -> None:
        self._load_detector = load_detector
        self._load_encoder = load_encoder
        self._capacity_bytes = capacity_bytes
        self._device = device
        self._detectors: OrderedDict[Key, Detector] = OrderedDict()
        self._encoders: dict[tuple[EncoderConfig, str], Encoder] = {}
        self._lock = threading.RLock()

    def detector(self, key: Key) -> Detector:
        """The detector of a key, loaded if need be; raises what `load_detector` raises."""
        with self._lock:
            if key not in self._detectors:
                self._detectors[key] = self._load_detector(key).to(self._device)
            self._detectors.move_to_end(key)
            while self.bytes > self._capacity_bytes and len(self._detectors) > 1:
                self._detectors.popitem(last=False)
            return self._detectors[key]

    @property
    def loaded(self) -> list[Key]:
        """Keys of the detectors in memory, least recently used first."""
        return list(self._detectors)

    @property
    def bytes(self) -> int:
        """Memory of the loaded detectors."""
        return sum(detector.bytes for detector in self._detectors.values())

    @torch.no_grad()
    def score_batch(self, images: Sequence[Tensor], keys: Sequence[Key]) -> list[Finding]:
        """Findings of uint8 images (3, H, W), each with the detector of its key, in order.

        Images whose detectors share encoder and input size share an encoder pass. Every image must have the input
        size of its detector.
        """
        assert len(images) == len(keys)
        findings: dict[int, Finding] = {}
        with self._lock:
            groups: dict[tuple[EncoderConfig, str, int], list[int]] = {}
            for position, key in enumerate(keys):
                detector = self.detector(key)
                group = (detector.config.encoder, detector.encoder_digest, detector.config.input_size)
                groups.setdefault(group, []).append(position)
            for (encoder_config, digest, _), positions in groups.items():
                pyramid = self._encoder(encoder_config, digest)(torch.stack([images[i] for i in positions]))
                findings |= self._findings(pyramid, positions, [keys[i] for i in positions])
        return [findings[position] for position in range(len(keys))]

    def _findings(self, pyramid: Sequence[Tensor], positions: Sequence[int], keys: Sequence[Key]) -> dict[int, Finding]:
        found: dict[int, Finding] = {}
        for key in dict.fromkeys(keys):
            rows = [row for row, other in enumerate(keys) if other == key]
            detector = self.detector(key)
            map_BHW = detector.maps([level[rows] for level in pyramid])
            scores = detector.scores(map_BHW).cpu().tolist()
            for row, score, map_HW in zip(rows, scores, map_BHW.cpu().numpy(), strict=True):
                found[positions[row]] = Finding(score=score, map_HW=map_HW)
        return found

    def _encoder(self, config: EncoderConfig, digest: str) -> Encoder:
        if (config, digest) not in self._encoders:
            self._encoders[config, digest] = self._load_encoder(config, digest).to(self._device)
        return self._encoders[config, digest]
