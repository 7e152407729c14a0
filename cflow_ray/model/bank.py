"""Many categories behind one encoder: a mixed batch takes one encoder pass, then each detector its images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.device import multiply_in_float32
from cflow_ray.model.encoder_model import CompiledEncoder, EncoderModel
from cflow_ray.model.graph import Sizes
from cflow_ray.model.region import covered
from cflow_ray.model.runtime import CompiledDetector, Runtime, TorchRuntime
from cflow_ray.model.threads import torch_threads
from cflow_ray.model.tiling import Blend, Layout

if TYPE_CHECKING:
    from cflow_ray.model.encoder import Encoder

# Shapes: T tiles (an image of the input's size is one tile) of h x w pixels, H x W pixels of a whole image.

# Bound the memory of a pass, whatever the size of an image. On a CPU more are no faster, and take more memory.
_TILES_AT_ONCE = 16
_TILES_AT_ONCE_ON_A_GPU = 64

Key = TypeVar("Key", bound=Hashable)
Image = NDArray[np.uint8] | Tensor
"""uint8 (3, H, W)."""
_Network = tuple[EncoderConfig, str, tuple[int, int]]
"""An encoder's architecture, the digest of its weights, and height and width of its input."""


@dataclass
class LoadedDetector:
    """A detector in memory; who holds it can score with it, whatever the bank has let go of meanwhile."""

    detector: Detector
    compiled: CompiledDetector | None = None
    """Of it, once it is to score."""

    @property
    def bytes(self) -> int:
        """Memory of the detector and of what was compiled of it."""
        return self.detector.bytes + (self.compiled.bytes if self.compiled else 0)

    @cached_property
    def network(self) -> _Network:
        """What turns its images into pyramids."""
        return self.detector.config.encoder.architecture, self.detector.encoder_digest, self.detector.config.size


class DetectorBank(Generic[Key]):
    """Detectors by key (a category, or a category and a version), loaded when they are needed.

    `load_detector` gives the detector of a key, `load_encoder` the network of an architecture and a digest of weights;
    both are called once and kept. `load_model` gives the same network for one size as a model, where there is one, to a
    runtime that can do with it. `runtime` compiles all when they first score. Detectors beyond `capacity_bytes` leave
    with what was compiled of them, least recently used first; those in use always stay. Passes of several threads are
    serialised. A load holds up no pass, and reads beside other loads; compiling is one at a time.
    """

    def __init__(
        self,
        load_detector: Callable[[Key], Detector],
        load_encoder: Callable[[EncoderConfig, str], Encoder],
        capacity_bytes: int = 2 * 2**30,
        device: str = "cpu",
        runtime: Runtime | None = None,
        load_model: Callable[[EncoderConfig, str, tuple[int, int]], EncoderModel | None] = lambda *network: None,
    ) -> None:
        self._load_detector = load_detector
        self._load_encoder = load_encoder
        self._load_model = load_model
        self._capacity_bytes = capacity_bytes
        on_cpu = torch.device(device).type == "cpu"
        if not on_cpu:
            multiply_in_float32()
        self._device = device
        self._tiles_at_once = _TILES_AT_ONCE if on_cpu else _TILES_AT_ONCE_ON_A_GPU
        self._runtime = runtime or TorchRuntime()
        self._detectors: OrderedDict[Key, LoadedDetector] = OrderedDict()
        self._arriving: dict[Key, Future[LoadedDetector]] = {}
        self._encoders: dict[tuple[EncoderConfig, str], Encoder] = {}
        self._sizes: dict[_Network, Sizes] = {}
        self._compiled_encoders: dict[_Network, CompiledEncoder] = {}
        self._table = threading.Lock()  # held for moments
        self._compiling = threading.RLock()
        self._passing = threading.Lock()

    def detector(self, key: Key) -> Detector:
        """The detector of a key, loaded if need be; raises what `load_detector` raises."""
        return self._held(key).detector

    def ready(self, key: Key) -> LoadedDetector | None:
        """The detector of a key if it can score at once; never waits."""
        with self._table:
            held = self._detectors.get(key)
            if held is None or held.compiled is None:
                return None
            self._detectors.move_to_end(key)
            return held

    def load(self, key: Key) -> LoadedDetector:
        """The same, read and compiled if need be; raises what `load_detector` and `load_encoder` raise."""
        held = self._held(key)
        if held.compiled is None:
            with self._compiling:
                if held.compiled is None:
                    self._encoder(held.network)
                    held.compiled = self._runtime.compile_detector(held.detector, self._sizes[held.network])
            with self._table:
                self._make_room()
        return held

    @property
    def loaded(self) -> list[Key]:
        """Keys of the detectors in memory, least recently used first."""
        with self._table:
            return list(self._detectors)

    @property
    def bytes(self) -> int:
        """Memory of the loaded detectors and of what was compiled of them."""
        with self._table:
            return self._bytes()

    def score_batch(self, images: Sequence[Image], keys: Sequence[Key]) -> list[Finding]:
        """Findings of uint8 images (3, H, W), each with the detector of its key, in order.

        Images whose detectors share encoder and input size share encoder passes. An image must be as `prepare` makes
        it for its detector: of the input size or, with tiling, at least that large.
        """
        held = {key: self.load(key) for key in dict.fromkeys(keys)}
        return self.score_loaded(images, [held[key] for key in keys])

    @torch.no_grad()
    def score_loaded(self, images: Sequence[Image], detectors: Sequence[LoadedDetector]) -> list[Finding]:
        """The same with detectors that this bank has loaded; nothing is read and nothing compiled."""
        with self._passing, torch_threads(self._runtime.torch_threads):
            items = [_Item.of(image, held) for image, held in zip(images, detectors, strict=True)]
            groups: dict[_Network, list[_Item]] = {}
            for item in items:
                groups.setdefault(item.held.network, []).append(item)
            for network, of_group in groups.items():
                for tiles in _passes(of_group, self._tiles_at_once):
                    _map_tiles(self._encoder(network), tiles)
            return [item.found for item in items]

    def _held(self, key: Key) -> LoadedDetector:
        """The detector of a key, read by the first who asks for it while the others wait for that."""
        with self._table:
            if key in self._detectors:
                self._detectors.move_to_end(key)
                return self._detectors[key]
            comes = key in self._arriving
            arriving = self._arriving.setdefault(key, Future())
        if comes:
            return arriving.result()
        try:
            held = LoadedDetector(self._load_detector(key).to(self._device))
        except BaseException as error:
            with self._table:
                del self._arriving[key]
            arriving.set_exception(error)
            raise
        with self._table:
            self._detectors[key] = held
            del self._arriving[key]
            self._make_room()
        arriving.set_result(held)
        return held

    def _encoder(self, network: _Network) -> CompiledEncoder:
        """The compiled encoder of a network; who brings a new one waits for it, and for what is being compiled."""
        if network not in self._compiled_encoders:
            with self._compiling:
                if network not in self._compiled_encoders:
                    self._compile_encoder(network)
        return self._compiled_encoders[network]

    def _compile_encoder(self, network: _Network) -> None:
        model = self._load_model(*network) if self._runtime.takes_models else None
        compiled = self._runtime.compile_model(model) if model is not None else None
        if model is None or compiled is None:
            self._make_encoder(network)
        else:
            self._sizes[network], self._compiled_encoders[network] = model.sizes, compiled

    @torch.no_grad()
    def _make_encoder(self, network: _Network) -> None:
        config, digest, size = network
        if (config, digest) not in self._encoders:
            self._encoders[config, digest] = self._load_encoder(config, digest).to(self._device)
        encoder = self._encoders[config, digest]
        pyramid = encoder(torch.zeros((1, 3, *size), dtype=torch.uint8, device=self._device))
        self._sizes[network] = tuple((level.shape[2], level.shape[3]) for level in pyramid)
        self._compiled_encoders[network] = self._runtime.compile_encoder(encoder, size)

    def _bytes(self) -> int:
        return sum(held.bytes for held in self._detectors.values())

    def _make_room(self) -> None:
        while self._bytes() > self._capacity_bytes and len(self._detectors) > 1:
            self._detectors.popitem(last=False)


@dataclass
class _Item:
    """An image of a batch on its way through the encoder."""

    image_3HW: Tensor
    held: LoadedDetector
    layout: Layout
    blend: Blend
    """Of its tiles' maps, until all are there."""
    finding: Finding | None = None

    @classmethod
    def of(cls, image: Image, held: LoadedDetector) -> _Item:
        """An image as the network is to see it."""
        image_3HW = torch.as_tensor(image)
        layout = Layout.of((image_3HW.shape[1], image_3HW.shape[2]), held.detector.config.input)
        return cls(covered(image_3HW, held.detector.region_HW), held, layout, Blend(layout))

    @property
    def found(self) -> Finding:
        """The finding, once all tiles' maps are there."""
        assert self.finding is not None
        return self.finding

    def add(self, map_hw: Tensor) -> None:
        """Take in the next tile's map; with the last comes the finding, and no more than that is kept."""
        self.blend.add(map_hw)
        if self.blend.is_whole:
            map_HW = self.held.detector.finished(self.blend.map())
            self.finding = Finding(score=self.held.detector.score(map_HW), map_HW=map_HW.cpu().numpy())
            self.blend = Blend(self.layout)


def _map_tiles(encoder: CompiledEncoder, tiles: Sequence[tuple[_Item, Tensor]]) -> None:
    """One pass: the maps of some tiles, each given to its image."""
    pyramid = encoder(torch.stack([tile_3hw for _, tile_3hw in tiles]))
    for held in {id(item.held): item.held for item, _ in tiles}.values():
        rows = [row for row, (item, _) in enumerate(tiles) if item.held is held]
        assert held.compiled is not None
        maps_Thw = held.compiled.maps(pyramid if len(rows) == len(tiles) else [level[rows] for level in pyramid])
        for row, map_hw in zip(rows, maps_Thw, strict=True):
            tiles[row][0].add(map_hw)


def _passes(items: Sequence[_Item], tiles_at_once: int) -> Iterator[list[tuple[_Item, Tensor]]]:
    """The tiles of some images, so many at a time."""
    waiting: list[tuple[_Item, Tensor]] = []
    for item in items:
        for tile_3hw in item.layout.tiles(item.image_3HW):
            waiting.append((item, tile_3hw))
            if len(waiting) == tiles_at_once:
                yield waiting
                waiting = []
    if waiting:
        yield waiting
