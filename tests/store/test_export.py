"""An exported file alone gives the registry's maps, scores and verdicts, in batches of any size."""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional

from cflow_ray import __version__
from cflow_ray.cli import main
from cflow_ray.config import DetectorConfig, EncoderConfig, ExportConfig, FlowConfig
from cflow_ray.errors import CheckpointError, ConfigError
from cflow_ray.model.detector import Detector, Finding
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.export import export_onnx
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.initialisation import start_whitened
from cflow_ray.model.scoring import Calibration
from cflow_ray.model.tiling import Layout
from cflow_ray.model.verdict import judge
from cflow_ray.store.export import export_version
from cflow_ray.store.manifest import Manifest
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage, split_uri

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = (64, 96)
FLOW = FlowConfig(blocks=2, condition_channels=8)
AddVersion = Callable[..., str]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Twelve pieces (12, 3, 64, 96), uint8, of a photograph."""
    photograph = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None].float()
    rows = functional.interpolate(photograph, (3 * 64, 4 * 96), mode="bilinear").round().byte()[0]
    pieces = [rows[:, y : y + 64, x : x + 96] for y in range(0, 192, 64) for x in range(0, 384, 96)]
    return torch.stack(pieces)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(Storage(str(tmp_path / "registry")))


@pytest.fixture
def add(registry: Registry, lite0_state: dict[str, Tensor], images: Tensor) -> AddVersion:
    """Adds and promotes a version of `screw` that follows the first images' features; returns its name."""
    encoder = Encoder(EncoderConfig(), lite0_state)

    def add_version(region_HW: Tensor | None = None, **changes: Any) -> str:
        config = DetectorConfig(**{"flow": FLOW, "input_size": SIZE, "target_fpr": 0.3} | changes)
        generator = torch.Generator().manual_seed(0)
        decoders, peaks = [], []
        for level in encoder(images[:6]):
            decoder = Decoder(level.shape[1], FLOW, generator)
            start_whitened(decoder, level.permute(0, 2, 3, 1).flatten(0, 2))
            with torch.no_grad():
                decoder.blocks[1].subnet[2].weight.mul_(10)
            decoders.append(decoder)
            peaks.append(float(FoldedDecoder.of(decoder)(level).quantile(0.9)))
        fitted = Fitted(config, tuple(decoders), Calibration.of(peaks, [0.1] * 6), region_HW)
        if config.tiling is None:
            detector, layout = fitted.detector(), Layout.of(SIZE, config.input)
            maps = [detector.whole(map_HW[None], layout) for map_HW in detector.maps(encoder(images[:6]))]
            calibration = Calibration.of(peaks, [detector.score(map_HW) for map_HW in maps])
            fitted = dataclasses.replace(fitted, calibration=calibration)
        encoder_digest = registry.add_encoder(lite0_state)

        def describe(version: str) -> Manifest:
            return Manifest(
                category="screw",
                version=version,
                detector=config,
                encoder_digest=encoder_digest,
                channels=encoder.channels,
                peaks=tuple(peaks),
                calibration_scores=fitted.calibration.scores,
            )

        version = registry.add("screw", fitted, describe)
        registry.promote("screw", version)
        return version

    return add_version


def exported(registry: Registry, output: str, **changes: Any) -> Any:
    """The session of a freshly written file."""
    export_version(ExportConfig(registry=registry.storage.uri, category="screw", output=output, **changes))
    folder, name = split_uri(output)
    return onnxruntime.InferenceSession(Storage(folder).read(name), providers=["CPUExecutionProvider"])


def findings(session: Any, images: Tensor, size: int) -> list[Finding]:
    found = []
    for batch in torch.split(images, size):
        maps_BHW, scores_B = session.run(["map", "score"], {"image": batch.numpy()})
        found += [Finding(float(score), map_HW) for map_HW, score in zip(maps_BHW, scores_B, strict=True)]
    return found


def by_registry(registry: Registry, version: str, images: Tensor) -> list[Finding]:
    bank = registry.bank()
    return [bank.score_batch([image], [("screw", version)])[0] for image in images]


def assert_same(found: Sequence[Finding], expected: Sequence[Finding], bound: float = 1e-5) -> None:
    assert np.ptp([finding.score for finding in expected]) > 0.01  # so that a mix-up would show
    for one, other in zip(found, expected, strict=True):
        assert abs(one.score - other.score) <= bound
        assert np.abs(one.map_HW - other.map_HW).max() <= bound


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"smoothing": 2.0, "top_fraction": 0.0},
        {"level_weights": (0.5, 1.0, 0.0), "top_fraction": 0.2},
        {"region": "mask.png", "smoothing": 1.0},
    ],
    ids=["defaults", "smoothed", "weighted", "region"],
)
def test_a_file_gives_the_registrys_maps_and_scores_in_every_batch(
    registry: Registry, add: AddVersion, images: Tensor, tmp_path: Path, changes: dict[str, Any]
) -> None:
    region_HW = None
    if "region" in changes:
        region_HW = torch.zeros(SIZE, dtype=torch.bool)
        region_HW[10:50, 20:70] = True
    version = add(region_HW, **changes)
    session = exported(registry, str(tmp_path / "screw.onnx"))
    expected = by_registry(registry, version, images)
    for size in (1, 2, 5, 12):
        assert_same(findings(session, images, size), expected)
    if region_HW is not None:
        assert all((finding.map_HW[~region_HW.numpy()] == 0).all() for finding in expected)


def test_a_file_alone_gives_the_verdicts(registry: Registry, add: AddVersion, images: Tensor, tmp_path: Path) -> None:
    version = add()
    session = exported(registry, str(tmp_path / "screw.onnx"))
    properties = session.get_modelmeta().custom_metadata_map
    threshold, scores = json.loads(properties["threshold"]), json.loads(properties["calibration_scores"])
    detector = registry.detector("screw", version)
    verdicts = [
        judge(finding.score, finding.map_HW, detector.calibration, 0.3, (0, 0, 96, 64))
        for finding in by_registry(registry, version, images)
    ]
    assert len({verdict.is_anomaly for verdict in verdicts}) == 2
    # images whose score is a calibration score itself are left out: there rounding decides
    of_others = [number for number in range(len(images)) if number >= 6]
    found = findings(session, images, 4)
    for number in of_others:
        score, verdict = found[number].score, verdicts[number]
        assert (score > threshold) == verdict.is_anomaly
        assert (1 + sum(other >= score for other in scores)) / (1 + len(scores)) == verdict.p_value


def test_the_metadata_say_how_to_prepare_an_image_and_what_it_is(
    registry: Registry, add: AddVersion, tmp_path: Path
) -> None:
    version = add(crop=0.75, resampling="lanczos", target_fpr=0.1)  # of 6 scores no threshold keeps 0.1
    properties = exported(registry, str(tmp_path / "screw.onnx")).get_modelmeta().custom_metadata_map
    manifest = registry.manifest("screw", version)
    assert properties == {
        "category": "screw",
        "version": version,
        "encoder": "tf_efficientnet_lite0",
        "encoder_digest": manifest.encoder_digest,
        "resampling": "lanczos",
        "cflow_ray_version": __version__,
        "input_size": "[64, 96]",
        "crop": "0.75",
        "threshold": "null",
        "target_fpr": "0.1",
        "calibration_scores": json.dumps(manifest.calibration_scores),
        "peaks": json.dumps(manifest.peaks),
    }


def test_the_graph_takes_bytes_in_batches_and_says_so(registry: Registry, add: AddVersion) -> None:
    add()
    output = f"memory://{uuid.uuid4().hex}/models/screw.onnx"
    session = exported(registry, output)
    model = onnx.load_from_string(Storage(split_uri(output)[0]).read("screw.onnx"))
    assert model.opset_import[0].version >= 17
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 3, 64, 96])
    ]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("map", ["batch", 64, 96]),
        ("score", ["batch"]),
    ]


def test_a_version_is_named_or_the_best(registry: Registry, add: AddVersion, tmp_path: Path) -> None:
    first, second = add(), add(top_fraction=0.5)
    for named, version in ((None, second), ("v1", first)):
        session = exported(registry, str(tmp_path / "screw.onnx"), version=named)
        assert session.get_modelmeta().custom_metadata_map["version"] == version


# what is refused


def test_a_version_that_scores_in_tiles_is_refused(registry: Registry, add: AddVersion, tmp_path: Path) -> None:
    add(tiling={"overlap": 0.25})
    with pytest.raises(ConfigError, match="scores in tiles, which one graph cannot"):
        exported(registry, str(tmp_path / "screw.onnx"))
    assert not (tmp_path / "screw.onnx").exists()


class Drifting(Detector):
    """A detector whose maps are not those of its decoders."""

    def maps(self, pyramid: Sequence[Tensor]) -> Tensor:
        return super().maps(pyramid) * 0.999


def test_a_graph_unlike_torch_is_refused(lite0_state: dict[str, Tensor], registry: Registry, add: AddVersion) -> None:
    detector = registry.detector("screw", add())
    other = Drifting(detector.config, list(detector.decoders), detector.calibration)
    encoder = Encoder(EncoderConfig(), lite0_state)
    assert export_onnx(encoder, detector, {}).difference < 1e-5
    with pytest.raises(CheckpointError, match="other values than torch"):
        export_onnx(encoder, other, {})


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, tmp_path: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}, .*pip install 'cflow-ray\[onnx\]'"):
        exported(registry, str(tmp_path / "screw.onnx"))


# the command


def test_the_command_writes_the_file_and_says_so(registry: Registry, add: AddVersion, tmp_path: Path) -> None:
    version, file = add(), tmp_path / "models" / "screw.onnx"
    command = ["models", "export", "screw", "--registry", registry.storage.uri, "--format", "onnx", "-o", str(file)]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert {name: shown[name] for name in ("category", "version", "file", "format")} == {
        "category": "screw",
        "version": version,
        "file": str(file),
        "format": "onnx",
    }
    assert shown["bytes"] == file.stat().st_size
    assert shown["difference"] <= 1e-5

    result = CliRunner().invoke(main, [*command[:3], "v9", *command[3:]])
    assert result.exit_code == 1
    assert "no version 'v9' of 'screw'" in result.stderr
