"""Compiled encoders and detectors against torch, the oracle: the same maps and scores, whatever the batch."""

from __future__ import annotations

import gc
import importlib
import logging
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig, TilingConfig
from cflow_ray.errors import ConfigError
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.encoder_model import CompiledEncoder, encoder_model
from cflow_ray.model.extras import check_runtime
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.graph import DetectorGraph, EncoderGraph, FindingGraph, Sizes
from cflow_ray.model.initialisation import start_whitened
from cflow_ray.model.onnx_graph import ModelStructure
from cflow_ray.model.runtime import CompiledDetector, OnnxRuntime, Run, Runtime, TorchRuntime, Weights
from cflow_ray.model.runtime_choice import AutoRuntime, fast_encoder, open_runtime
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.threads import torch_threads
from tests.model.conftest import SETTINGS, drawn_region

BOUND = 1e-5
CATEGORIES = ("cat", "cup", "rocket")
SIZES = {"cat": (64, 64), "cup": (64, 64), "rocket": (64, 96)}
Images = dict[str, Tensor]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    pytest.importorskip("onnx")
    pytest.importorskip(request.param)
    return open_runtime(request.param)


@pytest.fixture(scope="module")
def images(photographs: Tensor) -> Images:
    """Sixteen images (16, 3, H, W) at every category's size."""
    resized = {
        size: functional.interpolate(photographs.float(), size, mode="bilinear").round().byte()
        for size in set(SIZES.values())
    }
    return {category: resized[SIZES[category]] for category in CATEGORIES}


def fitted(encoder: Encoder, normals: Tensor, seed: int, region_HW: Tensor | None = None, **changes: Any) -> Detector:
    """A detector whose start follows some images' features, with couplings at work, as after a fit."""
    flow = changes.pop("flow", FlowConfig(blocks=3, condition_channels=0 if seed == 1 else 8))
    generator = torch.Generator().manual_seed(seed)
    pyramid = encoder(normals[torch.randperm(len(normals), generator=generator)[:8]])
    decoders = []
    for level in pyramid:
        decoder = Decoder(level.shape[1], flow, generator)
        start_whitened(decoder, level.permute(0, 2, 3, 1).flatten(0, 2))
        with torch.no_grad():
            for block in decoder.blocks:
                block.subnet[2].weight.mul_(10)
        decoders.append(FoldedDecoder.of(decoder))
    peaks = [float(decoder(level).quantile(0.9)) for decoder, level in zip(decoders, pyramid, strict=True)]
    size = (normals.shape[2], normals.shape[3])
    config = DetectorConfig(**{"encoder": encoder.config, "flow": flow, "input_size": size} | changes)
    return Detector(config, decoders, Calibration.of(peaks, [0.1, 0.2]), "lite0", region_HW)


@pytest.fixture(scope="module")
def detectors(lite0: Encoder, images: Images) -> dict[str, Detector]:
    return {
        "cat": fitted(lite0, images["cat"], 0, smoothing=1.0),
        "cup": fitted(lite0, images["cup"], 1, top_fraction=0.0),
        "rocket": fitted(lite0, images["rocket"], 2, level_weights=(1.0, 0.5, 0.0)),
    }


@pytest.fixture(scope="module")
def mixed(images: Images) -> tuple[list[Tensor], list[str]]:
    """Nine images of three categories and two sizes, in no order."""
    keys = ["cat", "rocket", "cat", "cup", "rocket", "cup", "cat", "rocket", "cat"]
    return [images[key][number] for number, key in enumerate(keys)], keys


def bank_of(
    detectors: dict[str, Detector], encoder: Encoder, runtime: Runtime, capacity_bytes: int = 2**31
) -> DetectorBank[str]:
    return DetectorBank(detectors.__getitem__, lambda config, digest: encoder, capacity_bytes, runtime=runtime)


@pytest.fixture(scope="module")
def compiled(runtime: Runtime, detectors: dict[str, Detector], lite0: Encoder) -> DetectorBank[str]:
    """A bank that compiles, kept so that every test finds its graphs."""
    return bank_of(detectors, lite0, runtime)


@pytest.fixture(scope="module")
def alone(detectors: dict[str, Detector], lite0: Encoder, mixed: tuple[list[Tensor], list[str]]) -> list[Finding]:
    """What torch says of every image by itself."""
    return scored(bank_of(detectors, lite0, TorchRuntime()), mixed, 1)


def scored(bank: DetectorBank[str], mixed: tuple[list[Tensor], list[str]], size: int) -> list[Finding]:
    images, keys = mixed
    batches = [slice(first, first + size) for first in range(0, len(images), size)]
    return [finding for batch in batches for finding in bank.score_batch(images[batch], keys[batch])]


def furthest(findings: Sequence[Finding], others: Sequence[Finding]) -> float:
    """The largest difference of any score or pixel."""
    assert len(findings) == len(others)
    assert all(one.map_HW.shape == other.map_HW.shape for one, other in zip(findings, others, strict=True))
    return max(
        max(abs(one.score - other.score), float(np.abs(one.map_HW - other.map_HW).max()))
        for one, other in zip(findings, others, strict=True)
    )


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_every_runtime_gives_torchs_answer_in_every_batch(
    compiled: DetectorBank[str], alone: list[Finding], mixed: tuple[list[Tensor], list[str]], size: int
) -> None:
    assert np.ptp([finding.score for finding in alone]) > 0.02  # so that a mix-up would show
    assert furthest(scored(compiled, mixed, size), alone) <= BOUND


def test_a_compiled_graph_knows_no_batch(compiled: DetectorBank[str], mixed: tuple[list[Tensor], list[str]]) -> None:
    of_one = scored(compiled, mixed, 1)
    assert all(furthest(scored(compiled, mixed, size), of_one) == 0 for size in (2, 5, 9))


def test_tiles_of_large_images_are_compiled_too(runtime: Runtime, lite0: Encoder, images: Images) -> None:
    detector = fitted(lite0, images["cat"], 3, tiling=TilingConfig(overlap=0.25))
    large = functional.interpolate(images["cat"][:1].float(), (100, 150), mode="bilinear").round().byte()[0]
    found, expected = (
        bank_of({"cat": detector}, lite0, each).score_batch([large], ["cat"]) for each in (runtime, TorchRuntime())
    )
    assert found[0].map_HW.shape == (100, 150)
    assert furthest(found, expected) <= BOUND


@pytest.mark.parametrize("name", ["more blocks", "longer condition", "mean", "region"])
def test_settings_that_no_category_above_has_are_compiled_too(
    runtime: Runtime, name: str, lite0: Encoder, images: Images
) -> None:
    region_HW = drawn_region(SIZES["cat"]) if name == "region" else None
    detector = {"cat": fitted(lite0, images["cat"], 3, region_HW, **SETTINGS[name])}
    batch = [*images["cat"][:5]], ["cat"] * 5
    expected, bank = scored(bank_of(detector, lite0, TorchRuntime()), batch, 1), bank_of(detector, lite0, runtime)
    assert np.ptp([finding.score for finding in expected]) > 0.01
    for size in (1, 5):
        assert furthest(scored(bank, batch, size), expected) <= BOUND


@pytest.mark.parametrize(
    ("name", "levels", "size"),
    [
        ("resnet18", {"strides": (8, 16)}, (64, 96)),
        ("vit_tiny_patch16_224", {"blocks": (1, 3)}, (64, 96)),
        ("vit_tiny_patch16_224", {"blocks": (1, 3)}, (60, 100)),  # no multiple of its patches
        ("convnext_atto", {"strides": (8, 16)}, (64, 96)),
    ],
)
def test_encoders_of_every_kind_compile_at_sizes_not_their_own(
    runtime: Runtime, name: str, levels: dict[str, tuple[int, ...]], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(name=name, **levels), timm.create_model(name).state_dict())
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    expected = encoder(images)
    for level, wanted in zip(runtime.compile_encoder(encoder, size)(images), expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    for level, wanted in zip(encoder(images), expected, strict=True):  # compiling leaves the encoder as it was
        assert torch.equal(level, wanted)


# graphs


def test_graphs_are_the_modules_arithmetic(detectors: dict[str, Detector], lite0: Encoder, images: Images) -> None:
    for category, detector in detectors.items():
        pyramid = lite0(images[category][:3])
        sizes = tuple((level.shape[2], level.shape[3]) for level in pyramid)
        graph = DetectorGraph(detector, sizes)
        for level, wanted in zip(graph.likelihoods(pyramid), detector.likelihoods(pyramid), strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(graph(*pyramid), detector.maps(pyramid), rtol=0, atol=BOUND)
        of_graph = EncoderGraph(lite0, SIZES[category])(images[category][:3])
        assert all(torch.equal(level, wanted) for level, wanted in zip(of_graph, pyramid, strict=True))


def test_a_finding_graph_is_the_bank_of_one_detector(lite0: Encoder, images: Images) -> None:
    region_HW = torch.zeros(64, 64, dtype=torch.bool)
    region_HW[10:50, 5:40] = True
    detector = fitted(lite0, images["cat"], 4, smoothing=2.0, top_fraction=0.01)
    detector.region_HW = region_HW
    sizes = tuple((level.shape[2], level.shape[3]) for level in lite0(images["cat"][:1]))
    maps_BHW, scores_B, *_ = FindingGraph(lite0, detector, sizes)(images["cat"][:5])
    expected = bank_of({"cat": detector}, lite0, TorchRuntime()).score_batch(list(images["cat"][:5]), ["cat"] * 5)
    found = [Finding(float(score), map_HW.numpy()) for score, map_HW in zip(scores_B, maps_BHW, strict=True)]
    assert furthest(found, expected) <= BOUND


# traced once, and kept


def test_detectors_of_one_structure_are_traced_once(
    runtime: Runtime, detectors: dict[str, Detector], lite0: Encoder, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced, trace = list[Sizes](), ModelStructure.of

    def noted(graph: DetectorGraph, *of_graph: Sequence[object]) -> ModelStructure:
        traced.append(graph.sizes)
        return trace(graph, *of_graph)

    monkeypatch.setattr(ModelStructure, "of", noted)
    fresh = open_runtime(runtime.name)
    pyramid = lite0(images["cat"][:3])
    sizes = tuple((level.shape[2], level.shape[3]) for level in pyramid)
    alike = [fitted(lite0, images["cat"][offset:], 0) for offset in (0, 5)]
    alike[1].decoders[0].get_buffer("offset_C_0").copy_(alike[1].decoders[1].get_buffer("offset_C_0")[0])
    for detector in (*alike, detectors["cup"], *alike):
        maps_BHW = fresh.compile_detector(detector, sizes).maps(pyramid)
        torch.testing.assert_close(maps_BHW, detector.maps(pyramid), rtol=0, atol=BOUND)
    assert float((alike[0].maps(pyramid) - alike[1].maps(pyramid)).abs().max()) > 100 * BOUND
    assert traced == [sizes, sizes]  # of cup, whose flow has no condition, one of its own


def test_weights_of_equal_values_stay_apart_in_a_structure() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")

    class Two(nn.Module):
        def __init__(self, one: float, other: float) -> None:
            super().__init__()
            self.register_buffer("one", torch.full((4,), one))
            self.register_buffer("other", torch.full((4,), other))

        def forward(self, x_N4: Tensor) -> Tensor:
            return x_N4 * self.get_buffer("one") + self.get_buffer("other")

    structure = ModelStructure.of(Two(1, 1), [torch.zeros(1, 4)], ["x"], ["y"])
    session = onnxruntime.InferenceSession(structure.filled(Two(2, 3)))
    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [[5, 5, 5, 5]]


def test_what_the_exporter_computes_of_weights_is_no_structure() -> None:
    pytest.importorskip("onnx")

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("used", torch.ones(4))
            self.register_buffer("unused", torch.ones(4))

        def forward(self, x_N4: Tensor) -> Tensor:
            return x_N4 * self.get_buffer("used")

    with pytest.raises(ValueError, match="unused"):
        ModelStructure.of(Shared(), [torch.zeros(1, 4)], ["x"], ["y"])


def test_a_kept_model_is_its_encoder(runtime: Runtime, lite0: Encoder, images: Images) -> None:
    model = encoder_model(lite0, (64, 96))
    compiled = runtime.compile_model(model)
    assert compiled is not None
    expected = lite0(images["rocket"][:3])
    assert model.sizes == tuple((level.shape[2], level.shape[3]) for level in expected)
    for level, wanted in zip(compiled(images["rocket"][:3]), expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    with pytest.raises(ConfigError, match="other features of tf_efficientnet_lite0"):
        runtime.compile_model(replace(model, features=tuple(1.001 * level for level in model.features)))


def test_torch_and_auto_go_on_without_a_model_they_cannot_run(lite0: Encoder) -> None:
    pytest.importorskip("onnxruntime")
    model = encoder_model(lite0, (64, 64))
    assert TorchRuntime().compile_model(model) is None
    assert AutoRuntime(OnnxRuntime()).compile_model(replace(model, content=b"no model")) is None


def test_the_fast_encoder_is_the_encoder_with_and_without_its_model(lite0: Encoder, images: Images) -> None:
    pytest.importorskip("onnxruntime")
    threads, expected = torch.get_num_threads(), lite0(images["rocket"][:3])
    for model in (encoder_model(lite0, (64, 96)), None, replace(encoder_model(lite0, (64, 96)), content=b"no model")):
        with fast_encoder(lite0, model, (64, 96)) as fast:
            assert fast is not lite0
            assert torch.get_num_threads() == 1
            for level, wanted in zip(fast(images["rocket"][:3]), expected, strict=True):
                torch.testing.assert_close(level, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        assert torch.get_num_threads() == threads


# what a bank does with a runtime


class Counting(TorchRuntime):
    """Writes down what it compiles, and says that a detector takes 1000 bytes more."""

    def __init__(self) -> None:
        self.encoders: list[tuple[int, int]] = []
        self.detectors: list[Sizes] = []
        self.alive: list[weakref.ref[CompiledDetector]] = []

    def compile_encoder(self, encoder: Encoder, size: tuple[int, int]) -> CompiledEncoder:
        self.encoders.append(size)
        return super().compile_encoder(encoder, size)

    def compile_detector(self, detector: Detector, sizes: Sizes) -> CompiledDetector:
        self.detectors.append(sizes)
        compiled = CompiledDetector(detector.maps, 1000)
        self.alive.append(weakref.ref(compiled))
        return compiled


def test_everything_is_compiled_once_when_it_is_needed(
    detectors: dict[str, Detector], lite0: Encoder, mixed: tuple[list[Tensor], list[str]]
) -> None:
    runtime = Counting()
    bank = bank_of(detectors, lite0, runtime)
    for category in CATEGORIES:
        bank.detector(category)
    assert (runtime.encoders, runtime.detectors) == ([], [])
    for _ in range(3):
        scored(bank, mixed, 9)
    assert sorted(runtime.encoders) == [(64, 64), (64, 96)]
    square, wide = ((8, 8), (4, 4), (2, 2)), ((8, 12), (4, 6), (2, 3))
    assert sorted(runtime.detectors) == [square, square, wide]


def test_what_is_compiled_counts_and_leaves_with_its_detector(
    detectors: dict[str, Detector], lite0: Encoder, images: Images
) -> None:
    runtime = Counting()
    bank = bank_of(detectors, lite0, runtime)
    bank.score_batch([images["cat"][0], images["cup"][0]], ["cat", "cup"])
    assert bank.bytes == sum(detectors[key].bytes + 1000 for key in ("cat", "cup"))
    bank = bank_of(detectors, lite0, runtime, capacity_bytes=bank.bytes - 1)  # without what is compiled both would fit
    runtime.alive.clear()
    bank.score_batch([images["cat"][0], images["cup"][0]], ["cat", "cup"])
    gc.collect()
    assert [alive() is None for alive in runtime.alive] == [True, False]


def test_compiled_weights_are_estimated(runtime: Runtime, detectors: dict[str, Detector]) -> None:
    sizes = ((8, 8), (4, 4), (2, 2))
    compiled = runtime.compile_detector(detectors["cat"], sizes)
    copies = {"onnxruntime": 1.25, "openvino": 2.0}[runtime.name]
    assert compiled.bytes == int(copies * DetectorGraph(detectors["cat"], sizes).bytes)
    assert TorchRuntime().compile_detector(detectors["cat"], sizes).bytes == 0


# which runtime


@pytest.mark.parametrize(
    ("absent", "kind"),
    [((), "onnxruntime"), (("onnxruntime",), "openvino"), (("onnx",), None), (("onnxruntime", "openvino"), None)],
)
def test_auto_is_the_fastest_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], kind: str | None
) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    for package in absent:
        monkeypatch.setitem(sys.modules, package, None)
    opened = open_runtime("auto")
    if kind is None:
        assert isinstance(opened, TorchRuntime)
    else:
        assert isinstance(opened, AutoRuntime)
        assert opened.name == kind


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_a_runtime_that_is_installed_and_broken_is_passed_over_by_auto_and_told_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    load = importlib.import_module

    def broken(name: str) -> ModuleType:
        if name == "onnxruntime":
            raise error("libonnxruntime.so: cannot enable executable stack")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ConfigError, match=r"cannot be loaded .*executable stack.*runtime torch"):
        open_runtime("onnxruntime")
    opened = open_runtime("auto")
    assert isinstance(opened, AutoRuntime)
    assert opened.name == "openvino"
    assert "executable stack" in caplog.text


def test_the_gpu_is_torchs() -> None:
    assert isinstance(open_runtime("auto", "cuda"), TorchRuntime)
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="runs on the CPU, not on cuda"):
        open_runtime("onnxruntime", "cuda")


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for check in (check_runtime, open_runtime):
        with pytest.raises(ConfigError, match=rf"pip install 'cflow-ray\[{extra}\]'"):
            check(name)


def test_nothing_optional_is_imported_before_it_is_used_nor_telemetry_at_all() -> None:
    pytest.importorskip("openvino")
    modules = "cflow_ray.cli, cflow_ray.score.run, cflow_ray.serve.run, cflow_ray.store.export"
    code = f"""
import sys, {modules}
from cflow_ray.model.runtime_choice import open_runtime
print([name for name in ("onnx", "onnxruntime", "openvino") if name in sys.modules])
open_runtime("openvino")
print([name for name, module in sys.modules.items() if "openvino_telemetry" in name and module])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["[]", "[]"]


def test_a_lone_image_has_all_of_torchs_threads_in_onnxruntimes_encoder(lite0: Encoder) -> None:
    pytest.importorskip("onnxruntime")
    tasks, before = Path("/proc/self/task"), torch.get_num_threads()
    if not tasks.exists():
        pytest.skip("counts threads in /proc")
    size, kept = (64, 64), list[object]()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            kept += [OnnxRuntime().compile_encoder(lite0, size)]  # after torch has started its own threads
            running = len(list(tasks.iterdir()))
            kept += [OnnxRuntime().compile_encoder(lite0, size)]
            assert len(list(tasks.iterdir())) - running == threads - 1  # the caller's is one of them
    finally:
        torch.set_num_threads(before)


def test_a_lone_image_has_the_features_that_it_has_in_a_batch(lite0: Encoder, images: Images) -> None:
    """Though with several threads another session of onnxruntime encodes it."""
    pytest.importorskip("onnxruntime")
    with torch_threads(4):
        compiled = OnnxRuntime().compile_encoder(lite0, tuple(images["cat"].shape[2:]))
        together = compiled(images["cat"][:3])
        for number in range(3):
            lone = compiled(images["cat"][number : number + 1])
            assert all(torch.equal(level[0], whole[number]) for level, whole in zip(lone, together, strict=True))


def test_images_side_by_side_keep_their_order(detectors: dict[str, Detector]) -> None:
    pytest.importorskip("onnxruntime")
    before = torch.get_num_threads()
    channels = DetectorGraph(detectors["cat"], ((8, 8), (4, 4), (2, 2))).channels
    levels = [torch.randn(9, C, side, side) for C, side in zip(channels, (8, 4, 2), strict=True)]
    maps = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            compiled = OnnxRuntime().compile_detector(detectors["cat"], ((8, 8), (4, 4), (2, 2)))
            maps.append(compiled.maps(levels))
    finally:
        torch.set_num_threads(before)
    assert maps[0].flatten(1).unique(dim=0).shape[0] == 9  # so that a mix-up would show
    assert torch.equal(*maps)


# what cannot be compiled


class Inexact(OnnxRuntime):
    """A runtime whose outputs are off by a thousandth."""

    def _load(self, model: bytes, names: Sequence[str], threads: int, weights: Weights = MappingProxyType({})) -> Run:
        run = super()._load(model, names, threads, weights)
        return lambda arrays: [output * np.float32(1.001) for output in run(arrays)]


class Incapable(OnnxRuntime):
    """A runtime that loads nothing."""

    def _load(self, model: bytes, names: Sequence[str], threads: int, weights: Weights = MappingProxyType({})) -> Run:
        raise ValueError("no kernel for Relu\nand a long graph")


def test_features_unlike_torchs_are_refused(lite0: Encoder) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match=r"other features of tf_efficientnet_lite0 than torch, by 1e-03"):
        Inexact().compile_encoder(lite0, (64, 64))


def test_what_a_runtime_cannot_do_is_named_and_auto_leaves_it_to_torch(
    detectors: dict[str, Detector],
    lite0: Encoder,
    mixed: tuple[list[Tensor], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError) as caught:
        bank_of(detectors, lite0, Incapable()).score_batch([mixed[0][0]], ["cat"])
    assert str(caught.value).endswith("tf_efficientnet_lite0: no kernel for Relu. Use runtime torch.")

    with caplog.at_level(logging.WARNING):
        found = scored(bank_of(detectors, lite0, AutoRuntime(Incapable())), mixed, 9)
    assert furthest(found, scored(bank_of(detectors, lite0, TorchRuntime()), mixed, 9)) == 0
    assert "no kernel for Relu" in caplog.text


def test_torch_has_one_thread_around_compiled_graphs_and_its_own_elsewhere(lite0: Encoder, images: Images) -> None:
    pytest.importorskip("onnxruntime")
    seen: list[int] = []

    class Watched(Detector):
        def maps(self, pyramid: Sequence[Tensor]) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().maps(pyramid)

        def score(self, map_HW: Tensor) -> float:
            seen.append(torch.get_num_threads())
            return super().score(map_HW)

    plain = fitted(lite0, images["cat"], 5)
    watched = Watched(plain.config, list(plain.decoders), plain.calibration, "lite0")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for runtime, expected in ((OnnxRuntime(), [1]), (AutoRuntime(Incapable()), [2, 1]), (TorchRuntime(), [2, 2])):
            seen.clear()
            bank_of({"cat": watched}, lite0, runtime).score_batch([images["cat"][0]], ["cat"])
            assert seen == expected
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
