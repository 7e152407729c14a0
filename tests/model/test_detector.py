"""A bank scores every image as if it were alone, with as few encoder passes and loads as there are reasons for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.errors import CheckpointError
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.initialisation import initialise_from_data
from cflow_ray.model.position import position_encoding
from cflow_ray.model.scoring import Calibration

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
        initialise_from_data(decoder, level.permute(0, 2, 3, 1).flatten(0, 2))
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
    """Images of every call of the encoder."""
    seen: list[int] = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
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


def test_other_weights_are_another_encoder(
    detectors: dict[str, Detector], encoder: Encoder, photographs: Tensor, passes: list[int]
) -> None:
    other = make_detector(encoder, photographs, 64, seed=9, digest="other weights")
    passes.clear()
    loads = Loads({**detectors, "other": other}, encoder)
    loads.bank().score_batch([photographs[0], photographs[1]], ["cat", "other"])
    assert passes == [1, 1]
    assert loads.encoders == [(encoder.config, "weights"), (encoder.config, "other weights")]


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


def test_a_likelihood_belongs_to_its_location(encoder: Encoder) -> None:
    """On a map that is not square: (b, i, j) is the fibre there under the condition of row i and column j."""
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(5, FLOW, generator).requires_grad_(False)
    features_BChw = torch.randn(2, 5, 3, 4, generator=generator)
    likelihood_Bhw = FoldedDecoder.of(decoder)(features_BChw)
    condition_PD = position_encoding(8, 3, 4)
    assert likelihood_Bhw.shape == (2, 3, 4)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                alone = decoder(features_BChw[b, :, i, j][None], condition_PD[i * 4 + j][None])
                torch.testing.assert_close(likelihood_Bhw[b, i, j], alone[0], rtol=1e-5, atol=1e-6)


def test_a_detector_is_frozen_and_knows_its_size(encoder: Encoder) -> None:
    decoders = [Decoder(channels, FLOW, torch.Generator().manual_seed(channels)) for channels in encoder.channels]
    config = DetectorConfig(encoder=encoder.config, flow=FLOW, input_size=64)
    detector = Detector(config, [FoldedDecoder.of(decoder) for decoder in decoders], Calibration.of([0.0, 0.0], []))
    assert not detector.training
    assert not any(tensor.requires_grad for tensor in (*detector.parameters(), *detector.buffers()))
    assert detector.bytes == sum(tensor.nbytes for tensor in detector.buffers())
    pyramid = [torch.zeros(1, 40, 8, 8), torch.zeros(1, 112, 4, 4)]
    before = detector.bytes
    for _ in range(2):
        detector.maps(pyramid)
        # of every block a bias a position and hidden unit, of which there are 2 (ceil(C / 2) + 8)
        assert detector.bytes - before == 2 * 4 * (64 * 2 * (20 + 8) + 16 * 2 * (56 + 8))


def test_a_pyramid_of_other_levels_is_an_error(detectors: dict[str, Detector], encoder: Encoder) -> None:
    pyramid = encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="shorter"):
        detectors["cat"].maps(pyramid[:1])
