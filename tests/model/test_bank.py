"""A bank scores every image as if it were alone, with as few encoder passes and loads as there are reasons for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig, TilingConfig
from cflow_ray.errors import CheckpointError
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.initialisation import start_whitened
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.tiling import Blend, Layout
from tests.model.conftest import SETTINGS, drawn_region

FLOW = FlowConfig(blocks=2, condition_channels=8)
SIDES = {"cat": 64, "cup": 64, "rocket": 96, "tile": 96, "screw": 64}


def make_detector(encoder: Encoder, normals: Tensor, side: int, seed: int, digest: str = "weights") -> Detector:
    """A detector that is the Gaussian of some images' features: cheap, and different for every seed."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(normals), generator=generator)[:6]
    pyramid = encoder(resized(normals[chosen], side))
    decoders = []
    for level in pyramid:
        decoder = Decoder(level.shape[1], FLOW, generator)
        start_whitened(decoder, level.permute(0, 2, 3, 1).flatten(0, 2))
        decoders.append(FoldedDecoder.of(decoder))
    peaks = [float(decoder(level).max()) for decoder, level in zip(decoders, pyramid, strict=True)]
    config = DetectorConfig(encoder=encoder.config, flow=FLOW, input_size=side)
    return Detector(config, decoders, Calibration.of(peaks, [0.1, 0.2]), digest)


def resized(images_B3HW: Tensor, side: int) -> Tensor:
    return functional.interpolate(images_B3HW.float(), (side, side), mode="bilinear").round().byte()


@pytest.fixture(scope="module")
def encoder(lite0_state: dict[str, Tensor]) -> Encoder:
    """The real network up to stride 16."""
    return Encoder(EncoderConfig(strides=(8, 16)), lite0_state)


@pytest.fixture(scope="module")
def detectors(encoder: Encoder, photographs: Tensor) -> dict[str, Detector]:
    return {
        name: make_detector(encoder, photographs, side, seed) for seed, (name, side) in enumerate(sorted(SIDES.items()))
    }


class Loads:
    """Loaders that hand out what is there and write down what they were asked for."""

    def __init__(self, detectors: dict[str, Detector], encoder: Encoder) -> None:
        self._detectors = detectors
        self._encoder = encoder
        self.detectors: list[str] = []
        self.encoders: list[tuple[EncoderConfig, str]] = []

    def detector(self, key: str) -> Detector:
        self.detectors.append(key)
        if key not in self._detectors:
            raise CheckpointError(f"no checkpoint for {key!r}")
        return self._detectors[key]

    def encoder(self, config: EncoderConfig, digest: str) -> Encoder:
        self.encoders.append((config, digest))
        return self._encoder

    def bank(self, capacity_bytes: int = 2**31) -> DetectorBank[str]:
        return DetectorBank(self.detector, self.encoder, capacity_bytes)


@pytest.fixture
def loads(detectors: dict[str, Detector], encoder: Encoder) -> Loads:
    return Loads(detectors, encoder)


@pytest.fixture
def passes(encoder: Encoder) -> Iterator[list[int]]:
    """Images of every call of the encoder, but for the black one whose pyramid says how large the levels are."""
    seen: list[int] = []
    handle = encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0])) if inputs[0].any() else None
    )
    yield seen
    handle.remove()


@pytest.fixture(scope="module")
def mixed(photographs: Tensor) -> tuple[list[Tensor], list[str]]:
    """Nine images of three categories and two sizes, in no order."""
    keys = ["cat", "rocket", "cat", "cup", "rocket", "cup", "cat", "rocket", "cat"]
    images = [resized(photographs[[i]], SIDES[key])[0] for i, key in enumerate(keys)]
    return images, keys


def assert_same(findings: list[Finding], expected: list[Finding], tolerance: float = 1e-5) -> None:
    assert len(findings) == len(expected)
    for finding, other in zip(findings, expected, strict=True):
        assert abs(finding.score - other.score) <= tolerance
        assert finding.map_HW.shape == other.map_HW.shape
        assert np.abs(finding.map_HW - other.map_HW).max() <= tolerance


@pytest.fixture(scope="module")
def alone(detectors: dict[str, Detector], encoder: Encoder, mixed: tuple[list[Tensor], list[str]]) -> list[Finding]:
    """What encoder and detector say of each image by itself."""
    found = []
    for image, key in zip(*mixed, strict=True):
        (map_HW,) = detectors[key].maps(encoder(image[None]))
        found.append(Finding(detectors[key].score(map_HW), map_HW.numpy()))
    return found


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_mixed_batch_gives_each_image_the_answer_it_has_alone_in_order(
    loads: Loads, mixed: tuple[list[Tensor], list[str]], alone: list[Finding], size: int
) -> None:
    images, keys = mixed
    bank = loads.bank()
    batches = [slice(first, first + size) for first in range(0, len(images), size)]
    assert_same([finding for batch in batches for finding in bank.score_batch(images[batch], keys[batch])], alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_as_the_cpu_and_a_batch_as_its_images_alone(
    detectors: dict[str, Detector], encoder: Encoder, mixed: tuple[list[Tensor], list[str]], alone: list[Finding]
) -> None:
    images, keys = mixed
    bank = DetectorBank[str](
        lambda key: deepcopy(detectors[key]), lambda config, digest: deepcopy(encoder), device="cuda"
    )
    together = bank.score_batch(images, keys)
    one_by_one = [bank.score_batch([image], [key])[0] for image, key in zip(images, keys, strict=True)]
    assert_same(together, one_by_one)
    assert_same(together, alone, tolerance=1e-4)


def test_findings_are_scores_and_maps_in_range_at_the_detectors_size(
    loads: Loads, mixed: tuple[list[Tensor], list[str]]
) -> None:
    images, keys = mixed
    findings = loads.bank().score_batch(images, keys)
    scores = [finding.score for finding in findings]
    assert np.ptp(scores) > 0.05  # the images differ, so that a mix-up shows in the test above
    assert all(0 <= score < 1 for score in scores)
    assert all(finding.map_HW.dtype == np.float32 for finding in findings)
    assert all(finding.map_HW.min() >= 0 and finding.map_HW.max() < 1 for finding in findings)
    assert [finding.map_HW.shape for finding in findings] == [(SIDES[key], SIDES[key]) for key in keys]


def test_the_detector_decides_the_score(loads: Loads, photographs: Tensor) -> None:
    cat, cup, screw = loads.bank().score_batch([photographs[3]] * 3, ["cat", "cup", "screw"])
    assert len({cat.score, cup.score, screw.score}) == 3


def test_categories_that_share_encoder_and_size_share_a_pass(
    loads: Loads, mixed: tuple[list[Tensor], list[str]], passes: list[int]
) -> None:
    images, keys = mixed
    loads.bank().score_batch(images, keys)
    assert sorted(passes) == sorted(
        [sum(SIDES[key] == side for key in keys) for side in (64, 96)]  # one pass a size
    )
    assert len(loads.encoders) == 1


def test_the_same_weights_by_another_name_are_the_same_encoder(
    detectors: dict[str, Detector], encoder: Encoder, photographs: Tensor, passes: list[int]
) -> None:
    plain = make_detector(encoder, photographs, 64, seed=9)
    renamed = plain.config.encoder.model_copy(update={"weights": "/weights/lite0.safetensors"})
    config = plain.config.model_copy(update={"encoder": renamed})
    other = Detector(config, list(plain.decoders), plain.calibration, "weights")
    passes.clear()
    loads = Loads({**detectors, "other": other}, encoder)
    loads.bank().score_batch([photographs[0], photographs[1]], ["cat", "other"])
    assert passes == [2]
    assert len(loads.encoders) == 1


def test_other_weights_are_another_encoder(
    detectors: dict[str, Detector], encoder: Encoder, photographs: Tensor, passes: list[int]
) -> None:
    other = make_detector(encoder, photographs, 64, seed=9, digest="other weights")
    passes.clear()
    loads = Loads({**detectors, "other": other}, encoder)
    loads.bank().score_batch([photographs[0], photographs[1]], ["cat", "other"])
    assert passes == [1, 1]
    network = encoder.config.architecture
    assert loads.encoders == [(network, "weights"), (network, "other weights")]


def test_everything_is_loaded_once(loads: Loads, mixed: tuple[list[Tensor], list[str]]) -> None:
    images, keys = mixed
    bank = loads.bank()
    for _ in range(3):
        bank.score_batch(images, keys)
    assert sorted(loads.detectors) == ["cat", "cup", "rocket"]
    assert len(loads.encoders) == 1


def test_an_empty_batch_loads_nothing(loads: Loads) -> None:
    assert loads.bank().score_batch([], []) == []
    assert loads.detectors == []
    assert loads.encoders == []


def test_the_least_recently_used_detector_leaves_first(encoder: Encoder, photographs: Tensor) -> None:
    alike = {key: make_detector(encoder, photographs, 64, seed) for seed, key in enumerate(SIDES)}
    (size,) = {detector.bytes for detector in alike.values()}
    loads = Loads(alike, encoder)
    bank = loads.bank(capacity_bytes=3 * size)
    for key in ("cat", "cup", "screw"):
        bank.detector(key)
    assert bank.loaded == ["cat", "cup", "screw"]
    bank.detector("cat")
    bank.detector("tile")
    assert bank.loaded == ["screw", "cat", "tile"]
    assert bank.bytes == 3 * size
    bank.detector("cup")
    assert bank.loaded == ["cat", "tile", "cup"]
    assert loads.detectors == ["cat", "cup", "screw", "tile", "cup"]


def test_scoring_takes_no_memory_beyond_the_capacity(encoder: Encoder, photographs: Tensor) -> None:
    """What the first pass over a detector's levels needs is counted when it is loaded."""
    loads = Loads({key: make_detector(encoder, photographs, 64, seed) for seed, key in enumerate(SIDES)}, encoder)
    alone = loads.bank()
    alone.score_batch([photographs[0]], ["cat"])
    bank = loads.bank(capacity_bytes=3 * alone.bytes - 1)
    for key in ("cat", "cup", "screw"):
        bank.score_batch([photographs[0]], [key])
    bank.score_batch([photographs[0]] * 2, ["cup", "screw"])
    assert bank.loaded == ["cup", "screw"]
    assert bank.bytes == 2 * alone.bytes


def test_a_detector_larger_than_the_capacity_still_works(loads: Loads, photographs: Tensor) -> None:
    bank = loads.bank(capacity_bytes=1)
    for key in ("cat", "cup", "cat"):
        bank.score_batch([photographs[0]], [key])
        assert bank.loaded == [key]
    assert loads.detectors == ["cat", "cup", "cat"]


def test_a_batch_of_more_categories_than_fit_is_still_right(
    loads: Loads, mixed: tuple[list[Tensor], list[str]]
) -> None:
    images, keys = mixed
    small = loads.bank(capacity_bytes=1)
    assert_same(small.score_batch(images, keys), loads.bank().score_batch(images, keys), tolerance=0)
    assert len(small.loaded) == 1


def test_a_detector_that_cannot_be_loaded_raises_and_leaves_no_trace(loads: Loads, photographs: Tensor) -> None:
    bank = loads.bank()
    before = bank.score_batch([photographs[0]], ["cat"])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="zippr"):
            bank.score_batch([photographs[0], photographs[1]], ["cat", "zippr"])
    assert bank.loaded == ["cat"]
    assert_same(bank.score_batch([photographs[0]], ["cat"]), before, tolerance=0)


def test_threads_get_the_answers_of_one_thread_and_load_once(
    loads: Loads, mixed: tuple[list[Tensor], list[str]]
) -> None:
    images, keys = mixed
    expected = loads.bank().score_batch(images, keys)
    loads.detectors.clear()
    bank = loads.bank(capacity_bytes=2**31)
    with ThreadPoolExecutor(4) as pool:
        for findings in pool.map(lambda _: bank.score_batch(images, keys), range(4)):
            assert_same(findings, expected)
    assert sorted(loads.detectors) == ["cat", "cup", "rocket"]


def test_a_load_holds_up_neither_a_pass_nor_another_load(loads: Loads, encoder: Encoder, photographs: Tensor) -> None:
    slow, begun = threading.Event(), threading.Event()

    def load(key: str) -> Detector:
        if key == "screw":
            begun.set()
            assert slow.wait(60)
        return loads.detector(key)

    bank = DetectorBank(load, loads.encoder)
    warm = bank.load("cat")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(bank.load, "screw") for _ in range(2)]
        assert begun.wait(60)
        assert bank.ready("screw") is None
        bank.score_loaded([photographs[0]], [warm])
        bank.load("cup")
        slow.set()
        first, second = (load.result(60) for load in waiting)
    assert first is second is bank.ready("screw")
    assert loads.detectors == ["cat", "cup", "screw"]  # both who asked for the screw share one load


def test_a_detector_that_was_let_go_still_scores_for_who_holds_it(loads: Loads, photographs: Tensor) -> None:
    bank = loads.bank(capacity_bytes=1)
    held = bank.load("cat")
    bank.load("cup")
    assert bank.ready("cat") is None
    (kept,) = bank.score_loaded([photographs[0]], [held])
    assert loads.detectors == ["cat", "cup"]
    assert_same(bank.score_batch([photographs[0]], ["cat"]), [kept], tolerance=0)


# tiles


@pytest.fixture(scope="module")
def tiling(encoder: Encoder, photographs: Tensor) -> Detector:
    """A detector of 64-pixel tiles that overlap by a quarter."""
    plain = make_detector(encoder, photographs, 64, seed=5)
    config = plain.config.model_copy(update={"tiling": TilingConfig(overlap=0.25)})
    return Detector(config, list(plain.decoders), plain.calibration, "weights")


def large(photographs: Tensor, height: int, width: int) -> Tensor:
    """An image of many tiles, without two alike."""
    mosaic = torch.cat([torch.cat(list(row), dim=2) for row in photographs.view(4, 4, 3, 64, 64)], dim=1)
    return mosaic[:, :height, :width].contiguous()


def test_a_tiled_image_is_the_blend_of_its_tiles_each_scored_alone(
    tiling: Detector, encoder: Encoder, photographs: Tensor
) -> None:
    bank = DetectorBank[str](lambda key: tiling, lambda config, digest: encoder)
    image = large(photographs, 150, 200)
    (finding,) = bank.score_batch([image], [""])
    layout = Layout.of((150, 200), tiling.config.input)
    assert len(layout.corners) > 6
    alone = torch.cat([tiling.maps(encoder(tile[None])) for tile in layout.cut(image)])
    expected_HW = layout.blend(alone)
    assert finding.map_HW.shape == (150, 200)
    assert np.abs(finding.map_HW - expected_HW.numpy()).max() <= 1e-5
    assert finding.score == pytest.approx(tiling.score(expected_HW), abs=1e-5)


def test_of_a_tiled_image_no_more_maps_are_kept_than_a_pass_has(
    tiling: Detector, encoder: Encoder, photographs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes into the image's one map, so that overlap and number of images do not add up in memory."""
    maps: list[weakref.ref[Tensor]] = []
    at_once: list[int] = []
    add = Blend.add

    def counted(self: Blend, map_hw: Tensor) -> None:
        add(self, map_hw)
        maps.append(weakref.ref(map_hw))
        at_once.append(sum(one() is not None for one in maps))

    monkeypatch.setattr(Blend, "add", counted)
    images = [large(photographs, 240, 250), large(photographs, 200, 256)]
    DetectorBank[str](lambda key: tiling, lambda config, digest: encoder).score_batch(images, ["", ""])
    assert len(maps) > 2 * 16  # tiles of a pass
    assert max(at_once) <= 16


def test_tiled_and_whole_images_of_several_categories_share_a_batch(
    tiling: Detector, detectors: dict[str, Detector], encoder: Encoder, photographs: Tensor, passes: list[int]
) -> None:
    """At 256 x 256 an image has 25 tiles, which share a pass with whole images of the tiles' size."""
    loads = Loads({**detectors, "tiling": tiling}, encoder)
    keys = ["tiling", "cat", "tiling", "cup", "tiling", "rocket", "tiling"]
    images = [
        large(photographs, 256, 256),
        photographs[0],
        photographs[1],
        photographs[2],
        large(photographs, 256, 256).flip(2),
        resized(photographs[[3]], 96)[0],
        large(photographs, 256, 100),
    ]
    together = loads.bank().score_batch(images, keys)
    assert sum(passes) - 1 == 25 + 1 + 1 + 1 + 25 + 10
    assert sorted(passes) == [1, 15, 16, 16, 16]
    alone = [loads.bank().score_batch([image], [key])[0] for image, key in zip(images, keys, strict=True)]
    assert_same(together, alone)
    assert [finding.map_HW.shape for finding in together] == [tuple(image.shape[1:]) for image in images]
    assert np.abs(together[0].map_HW[:, ::-1] - together[4].map_HW).max() > 0.01


def test_more_tiles_than_a_pass_takes_are_passed_on_in_turn(
    tiling: Detector, encoder: Encoder, photographs: Tensor, passes: list[int]
) -> None:
    bank = DetectorBank[str](lambda key: tiling, lambda config, digest: encoder)
    images = [large(photographs, 256, 256), large(photographs, 256, 256).flip(1), large(photographs, 256, 256).flip(2)]
    together = bank.score_batch(images, [""] * 3)
    assert passes == [16, 16, 16, 16, 11]
    assert_same(together, [bank.score_batch([image], [""])[0] for image in images])


# settings of a detector


@pytest.mark.parametrize("name", SETTINGS)
def test_with_every_setting_an_image_alone_has_the_answer_it_has_in_a_batch(
    name: str, encoder: Encoder, photographs: Tensor, detectors: dict[str, Detector]
) -> None:
    config = DetectorConfig(**{"encoder": encoder.config, "flow": FLOW, "input_size": 64} | SETTINGS[name])
    decoders = [Decoder(C, config.flow, torch.Generator().manual_seed(C)) for C in encoder.channels]
    normals = resized_to(photographs, config.size)
    for decoder, level in zip(decoders, encoder(normals[:6]), strict=True):
        start_whitened(decoder, level.permute(0, 2, 3, 1).flatten(0, 2))
    region_HW = drawn_region(config.size) if name == "region" else None
    folded = [FoldedDecoder.of(decoder) for decoder in decoders]
    detector = Detector(config, folded, Calibration.of([-1.0, -1.0], [0.1]), "weights", region_HW)
    bank = Loads({**detectors, "set": detector}, encoder).bank()
    images = [large(photographs, 130, 100) if name == "tiling" else image for image in normals[6:9]]
    alone = [bank.score_batch([image], ["set"])[0] for image in images]
    mixed = bank.score_batch([photographs[0], *images, photographs[1]], ["cat", "set", "set", "set", "cup"])
    assert_same(mixed[1:4], alone)
    assert all(finding.map_HW.std() > 1e-3 for finding in alone)


def resized_to(images_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(images_B3HW.float(), size, mode="bilinear").round().byte()
