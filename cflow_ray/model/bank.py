"""Many categories behind one encoder: a mixed batch takes one encoder pass, then each detector its images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.region import covered
from cflow_ray.model.runtime import CompiledDetector, CompiledEncoder, Runtime, TorchRuntime
from cflow_ray.model.threads import torch_threads
from cflow_ray.model.tiling import Layout

# Shapes: T tiles (an image of the input's size is one tile) of h x w pixels, H x W pixels of a whole image.

_TILES_AT_ONCE = 64  # bounds the memory of a pass, whatever the size of an image

Key = TypeVar("Key", bound=Hashable)
_Network = tuple[EncoderConfig, str, tuple[int, int]]
"""An encoder's configuration, the digest of its weights, and height and width of its input."""


class DetectorBank(Generic[Key]):
    """Detectors by key (a category, or a category and a version), loaded when they are needed.

    `load_detector` gives the detector of a key, `load_encoder` the network of a configuration and a digest of weights;
    both are called once and kept. `runtime` compiles both when they first score. Detectors beyond `capacity_bytes` leave
    with what was compiled of them, least recently used first; the one in use always stays. Calls from several threads
    are serialised.
    """

    def __init__(
        self,
        load_detector: Callable[[Key], Detector],
        load_encoder: Callable[[EncoderConfig, str], Encoder],
        capacity_bytes: int = 2 * 2**30,
        device: str = "cpu",
        runtime: Runtime | None = None,
    ) -> None:
        self._load_detector = load_detector
        self._load_encoder = load_encoder
        self._capacity_bytes = capacity_bytes
        self._device = device
        self._runtime = runtime or TorchRuntime()
        self._detectors: OrderedDict[Key, _Loaded] = OrderedDict()
        self._encoders: dict[tuple[EncoderConfig, str], Encoder] = {}
        self._compiled_encoders: dict[_Network, CompiledEncoder] = {}
        self._lock = threading.RLock()

    def detector(self, key: Key) -> Detector:
        """The detector of a key, loaded if need be; raises what `load_detector` raises."""
        with self._lock:
            if key not in self._detectors:
                self._detectors[key] = _Loaded(self._load_detector(key).to(self._device))
            self._detectors.move_to_end(key)
            self._make_room()
            return self._detectors[key].detector

    @property
    def loaded(self) -> list[Key]:
        """Keys of the detectors in memory, least recently used first."""
        return list(self._detectors)

    @property
    def bytes(self) -> int:
        """Memory of the loaded detectors and of what was compiled of them."""
        return sum(loaded.bytes for loaded in self._detectors.values())

    @torch.no_grad()
    def score_batch(self, images: Sequence[Tensor], keys: Sequence[Key]) -> list[Finding]:
        """Findings of uint8 images (3, H, W), each with the detector of its key, in order.

        Images whose detectors share encoder and input size share encoder passes. An image must be as `prepare` makes
        it for its detector: of the input size or, with tiling, at least that large.
        """
        assert len(images) == len(keys)
        with self._lock, torch_threads(self._runtime.torch_threads):
            groups: dict[_Network, list[_Item[Key]]] = {}
            items = [self._item(image, key) for image, key in zip(images, keys, strict=True)]
            for item in items:
                detector = self.detector(item.key)
                network = (detector.config.encoder, detector.encoder_digest, detector.config.size)
                groups.setdefault(network, []).append(item)
            for network, of_group in groups.items():
                for tiles in _passes(of_group):
                    self._map_tiles(self._encoder(network), tiles)
            return [self._finding(item) for item in items]

    def _item(self, image_3HW: Tensor, key: Key) -> _Item[Key]:
        size, detector = (image_3HW.shape[1], image_3HW.shape[2]), self.detector(key)
        return _Item(covered(image_3HW, detector.region_HW), key, Layout.of(size, detector.config.input))

    def _map_tiles(self, encoder: CompiledEncoder, tiles: Sequence[tuple[_Item[Key], Tensor]]) -> None:
        """One pass: the maps of some tiles, each kept with its image."""
        pyramid = encoder(torch.stack([tile_3hw for _, tile_3hw in tiles]))
        for key in dict.fromkeys(item.key for item, _ in tiles):
            rows = [row for row, (item, _) in enumerate(tiles) if item.key == key]
            maps_Thw = self._compiled(key, pyramid).maps([level[rows] for level in pyramid])
            for row, map_hw in zip(rows, maps_Thw, strict=True):
                tiles[row][0].maps.append(map_hw)

    def _finding(self, item: _Item[Key]) -> Finding:
        detector = self.detector(item.key)
        map_HW = detector.whole(torch.stack(item.maps), item.layout)
        return Finding(score=detector.score(map_HW), map_HW=map_HW.cpu().numpy())

    def _encoder(self, network: _Network) -> CompiledEncoder:
        config, digest, size = network
        if (config, digest) not in self._encoders:
            self._encoders[config, digest] = self._load_encoder(config, digest).to(self._device)
        if network not in self._compiled_encoders:
            encoder = self._encoders[config, digest]
            self._compiled_encoders[network] = self._runtime.compile_encoder(encoder, size)
        return self._compiled_encoders[network]

    def _compiled(self, key: Key, pyramid: Sequence[Tensor]) -> CompiledDetector:
        """The compiled detector of a key; the levels of its pyramids have the sizes of this one's."""
        detector, loaded = self.detector(key), self._detectors[key]
        if loaded.compiled is None:
            sizes = tuple((level.shape[2], level.shape[3]) for level in pyramid)
            loaded.compiled = self._runtime.compile_detector(detector, sizes)
            self._make_room()
        return loaded.compiled

    def _make_room(self) -> None:
        while self.bytes > self._capacity_bytes and len(self._detectors) > 1:
            self._detectors.popitem(last=False)


@dataclass
class _Loaded:
    """A detector, and what was compiled of it once it scored."""

    detector: Detector
    compiled: CompiledDetector | None = None

    @property
    def bytes(self) -> int:
        return self.detector.bytes + (self.compiled.bytes if self.compiled else 0)


@dataclass
class _Item(Generic[Key]):
    """An image of a batch on its way through the encoder."""

    image_3HW: Tensor
    key: Key
    layout: Layout
    maps: list[Tensor] = field(default_factory=list)
    """Of its tiles, in order."""


def _passes(items: Sequence[_Item[Key]]) -> Iterator[list[tuple[_Item[Key], Tensor]]]:
    """The tiles of some images, so many at a time."""
    waiting: list[tuple[_Item[Key], Tensor]] = []
    for item in items:
        for tile_3hw in item.layout.cut(item.image_3HW):
            waiting.append((item, tile_3hw))
            if len(waiting) == _TILES_AT_ONCE:
                yield waiting
                waiting = []
    if waiting:
        yield waiting
