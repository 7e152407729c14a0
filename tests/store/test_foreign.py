"""Checkpoints of the official code and of anomalib give the likelihoods that FrEIA gives, and nothing of them is executed."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as transforms_functional

from cflow_ray.config import ImportConfig
from cflow_ray.data.images import prepare
from cflow_ray.errors import CflowRayError, CheckpointError, ConfigError
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.position import position_encoding
from cflow_ray.store.foreign import parse_foreign
from cflow_ray.store.importing import Imported, import_checkpoint
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
from tests.foreign import (
    CHANNELS,
    NORMALIZE,
    RESIZE,
    anomalib_checkpoint,
    freia_decoder,
    likelihood,
    official_checkpoint,
    official_encoder,
    official_pyramid,
    saved,
    timm_encoder,
    transforms,
)

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

Import = Callable[..., tuple[Imported, Registry]]


@dataclass(frozen=True)
class Original:
    """The modules that a file was made of."""

    network: nn.Module
    decoders: list[SequenceINN]


@pytest.fixture(scope="module")
def official() -> Original:
    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA draws its rotations there
    return Original(official_encoder(), [freia_decoder(channels) for channels in CHANNELS])


@pytest.fixture(scope="module")
def anomalib() -> Original:
    torch.manual_seed(1)
    np.random.seed(1)
    return Original(timm_encoder(), [freia_decoder(channels, soft=False) for channels in CHANNELS])


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Imports a checkpoint from a file into a new registry."""

    def import_file(checkpoint: Any, **settings: Any) -> tuple[Imported, Registry]:
        (tmp_path / "file.pt").write_bytes(checkpoint if isinstance(checkpoint, bytes) else saved(checkpoint))
        uri = str(tmp_path / "registry")
        config = ImportConfig(registry=uri, file=str(tmp_path / "file.pt"), category="screw", **settings)
        return import_checkpoint(config), Registry(Storage(uri))

    return import_file


def for_resnet18(**settings: Any) -> dict[str, Any]:
    return {"detector": {"encoder": {"name": "resnet18"}, "input_size": 96, **settings}}


def assert_likelihoods(registry: Registry, version: str, pyramid: list[Tensor], expected: list[Tensor]) -> None:
    """FrEIA's modules and the folded evaluator of a version give these likelihoods (B, h, w) of these features."""
    fitted = registry.fitted("screw", version)
    assert len(fitted.decoders) == len(pyramid) == len(expected)
    for decoder, features, wanted in zip(fitted.decoders, pyramid, expected, strict=True):
        B, C, h, w = features.shape
        condition = position_encoding(fitted.config.flow.condition_channels, h, w).repeat(B, 1)
        with torch.no_grad():
            own = decoder(features.permute(0, 2, 3, 1).reshape(-1, C), condition).view(B, h, w)
        assert (own - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1)
        assert (FoldedDecoder.of(decoder)(features) - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1)


def drawn_pyramid(channels: tuple[int, ...] = CHANNELS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, C, 8 >> level, 12 >> level, generator=generator) for level, C in enumerate(channels)]


def expected_likelihoods(decoders: list[SequenceINN], pyramid: list[Tensor], condition: int = 128) -> list[Tensor]:
    return [
        likelihood(decoder, features, position_encoding(condition, *features.shape[2:]) if condition else None)
        for decoder, features in zip(decoders, pyramid, strict=True)
    ]


# -- the same names, and the same likelihoods


def test_the_file_that_is_drawn_here_has_the_names_and_shapes_of_anomalibs_own(anomalib: Original) -> None:
    """Kept from anomalib 2.7.0: entries that its Cflow of a ResNet-18 and two blocks adds to Lightning's, and its state."""
    own = json.loads(Path(__file__).with_name("anomalib-2.7.json").read_text(encoding="utf-8"))
    drawn = anomalib_checkpoint(anomalib.network, anomalib.decoders)
    assert {name: list(tensor.shape) for name, tensor in drawn["state_dict"].items()} == own["state_dict"]
    assert set(own["entries"]) <= drawn.keys()
    assert sorted(drawn["hyper_parameters"]) == own["hyper_parameters"]


@pytest.mark.parametrize("levels", [3, 2])
def test_the_official_codes_likelihoods_are_kept(official: Original, imported: Import, levels: int) -> None:
    decoders = official.decoders[-levels:]
    found, registry = imported(official_checkpoint(official.network, decoders), **for_resnet18())
    config = registry.manifest("screw", found.version).detector
    assert config.encoder.strides == (8, 16, 32)[-levels:]  # its pool layers are the last ones
    assert config.flow.model_dump() == {"blocks": 2, "clamp": 1.9, "condition_channels": 128}
    pyramid = drawn_pyramid()[-levels:]
    assert_likelihoods(registry, found.version, pyramid, expected_likelihoods(decoders, pyramid))


def test_an_unconditional_flow_is_recognised_by_its_shapes(official: Original, imported: Import) -> None:
    decoders = [freia_decoder(C, blocks=3, condition=0) for C in CHANNELS[1:]]
    found, registry = imported(official_checkpoint(official.network, decoders), **for_resnet18())
    flow = registry.manifest("screw", found.version).detector.flow
    assert (flow.blocks, flow.condition_channels) == (3, 0)
    pyramid = drawn_pyramid()[1:]
    assert_likelihoods(registry, found.version, pyramid, expected_likelihoods(decoders, pyramid, condition=0))


def test_anomalibs_likelihoods_are_kept(anomalib: Original, imported: Import) -> None:
    found, registry = imported(anomalib_checkpoint(anomalib.network, anomalib.decoders))
    assert found.notes == ()  # it names everything
    pyramid = drawn_pyramid()
    assert_likelihoods(registry, found.version, pyramid, expected_likelihoods(anomalib.decoders, pyramid))


def test_another_clamp_is_taken_from_anomalibs_hyper_parameters(anomalib: Original, imported: Import) -> None:
    decoders = copy.deepcopy(anomalib.decoders)
    for decoder in decoders:
        for block in decoder.module_list:
            block.clamp = 1.2
    found, registry = imported(anomalib_checkpoint(anomalib.network, decoders, clamp_alpha=1.2))
    pyramid = drawn_pyramid()
    expected = expected_likelihoods(decoders, pyramid)
    assert (expected[0] - expected_likelihoods(anomalib.decoders, pyramid)[0]).abs().max() > 1e-3
    assert_likelihoods(registry, found.version, pyramid, expected)


class LaterBlock(AllInOneBlock):
    """FrEIA's block since commit ae74fd4 of 17 August 2023: the clamp also divides what tanh sees."""

    def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        a = a * 0.1
        ch = x.shape[1]
        sub_jac = self.clamp * torch.tanh(a[:, :ch] / self.clamp)
        return x * torch.exp(sub_jac) + a[:, ch:], torch.sum(sub_jac, dim=self.sum_dims)


def test_weights_of_the_later_freia_keep_the_likelihoods_they_have_there(official: Original, imported: Import) -> None:
    decoders = [freia_decoder(C, block=LaterBlock) for C in CHANNELS[2:]]
    checkpoint = official_checkpoint(official.network, decoders)
    found, registry = imported(checkpoint, later_freia=True, **for_resnet18())
    assert not any("--later-freia" in note for note in found.notes)
    pyramid = drawn_pyramid()[2:]
    expected = expected_likelihoods(decoders, pyramid)
    assert_likelihoods(registry, found.version, pyramid, expected)
    as_older, registry = imported(checkpoint, **for_resnet18())
    assert any("--later-freia" in note for note in as_older.notes)
    with pytest.raises(AssertionError):
        assert_likelihoods(registry, as_older.version, pyramid, expected)


def test_anomalib_has_no_later_freia(anomalib: Original, imported: Import) -> None:
    with pytest.raises(ConfigError, match="leave --later-freia out"):
        imported(anomalib_checkpoint(anomalib.network, anomalib.decoders), later_freia=True)


# -- from the image on


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def features_of(registry: Registry, version: str, photograph: np.ndarray) -> list[Tensor]:
    """What the imported version sees of an image, with the encoder that the registry holds."""
    manifest = registry.manifest("screw", version)
    encoder = registry.encoder(manifest.detector.encoder, manifest.encoder_digest)
    return encoder(torch.from_numpy(prepare(png(photograph), manifest.detector.input).pixels_3HW)[None])


def assert_features(found: list[Tensor], expected: list[Tensor]) -> None:
    for features, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_an_image_has_the_official_codes_features(official: Original, imported: Import) -> None:
    """Resized as its loader does, normalised as its main.py says, through its network with reflected borders."""
    found, registry = imported(official_checkpoint(official.network, official.decoders), **for_resnet18())
    photograph = skimage.data.chelsea()
    resized = Image.fromarray(photograph).resize((96, 96), Image.Resampling.LANCZOS)
    inputs = transforms_functional.normalize(transforms_functional.to_tensor(resized), *IMAGENET)[None]
    assert_features(features_of(registry, found.version, photograph), official_pyramid(official.network, inputs))


def test_an_image_has_anomalibs_features(anomalib: Original, imported: Import) -> None:
    """Size and normalisation are the file's, not the network's in timm."""
    found, registry = imported(anomalib_checkpoint(anomalib.network, anomalib.decoders))
    assert found.input_size == (64, 96)
    photograph = np.ascontiguousarray(
        skimage.data.chelsea()[:64, :96]
    )  # of the input's size: resizing rounds otherwise
    mean, std = NORMALIZE["mean"], NORMALIZE["std"]
    inputs = transforms_functional.normalize(transforms_functional.to_tensor(photograph), mean, std)[None]
    with torch.no_grad():
        expected = anomalib.network(inputs)
    assert_features(features_of(registry, found.version, photograph), expected)


def test_an_image_that_has_to_be_resized_differs_from_anomalibs_by_rounding_only(
    anomalib: Original, imported: Import
) -> None:
    """anomalib resizes in floating point, here pixels stay whole numbers."""
    found, registry = imported(anomalib_checkpoint(anomalib.network, anomalib.decoders))
    photograph = skimage.data.astronaut()
    prepared = prepare(png(photograph), registry.manifest("screw", found.version).detector.input)
    ours = torch.from_numpy(prepared.pixels_3HW)
    theirs = transforms_functional.resize(transforms_functional.to_tensor(photograph), RESIZE["size"], antialias=True)
    assert (ours - 255 * theirs).abs().max() <= 1


# -- what becomes of a version


def test_an_imported_version_awaits_calibration(official: Original, imported: Import) -> None:
    found, registry = imported(official_checkpoint(official.network, official.decoders), **for_resnet18())
    assert registry.categories() == []
    assert [(entry.version, entry.promoted) for entry in registry.listing()] == [(found.version, False)]
    manifest = registry.manifest("screw", found.version)
    assert not manifest.is_calibrated
    assert manifest.origin.startswith("official checkpoint ")
    assert manifest.origin.endswith("file.pt")
    assert manifest.detector.encoder.weights == "registry"
    for refused in (registry.promote, registry.detector):
        with pytest.raises(CheckpointError, match=f"cflow-ray models calibrate screw {found.version}"):
            refused("screw", found.version)


def test_what_the_file_leaves_open_is_said_and_can_be_set(official: Original, imported: Import) -> None:
    checkpoint = official_checkpoint(official.network, official.decoders)
    found, registry = imported(
        checkpoint, detector={"encoder": {"name": "resnet18"}, "top_fraction": 0, "target_fpr": 0.2}
    )
    assert [note for note in found.notes if "does not name" in note] == [
        "the file does not name input_size; 256 is taken, the default of the program it is from"
    ]
    config = registry.manifest("screw", found.version).detector
    assert (config.size, config.resampling, config.top_fraction, config.target_fpr) == ((256, 256), "lanczos", 0, 0.2)


def test_without_hyper_parameters_and_transforms_anomalibs_defaults_are_taken(
    anomalib: Original, imported: Import
) -> None:
    checkpoint = anomalib_checkpoint(anomalib.network, anomalib.decoders)
    bare = {"state_dict": checkpoint["state_dict"]}
    found, registry = imported(bare, **for_resnet18())
    config = registry.manifest("screw", found.version).detector
    assert (config.encoder.strides, config.encoder.mean, config.encoder.std) == ((8, 16, 32), *map(tuple, IMAGENET))
    assert sorted(note.split()[5].rstrip(";") for note in found.notes) == [
        *("encoder.mean", "encoder.std", "encoder.strides", "encoder.weights"),
    ]


def test_one_frozen_network_is_kept_once(official: Original, imported: Import) -> None:
    checkpoint = official_checkpoint(official.network, official.decoders)
    _, registry = imported(checkpoint, **for_resnet18())
    imported(checkpoint, **for_resnet18(target_fpr=0.1))
    assert len(registry.storage.files("_encoders")) == 1
    assert len(registry.versions("screw")) == 2


def test_a_file_may_lie_in_any_storage(official: Original, tmp_path: Path) -> None:
    Storage("memory://foreign").write("a/file.pt", saved(official_checkpoint(official.network, official.decoders)))
    config = ImportConfig(
        registry=str(tmp_path / "registry"), file="memory://foreign/a/file.pt", category="screw", **for_resnet18()
    )
    assert import_checkpoint(config).program == "official"


# -- refused


class Trap:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks"])
def test_objects_in_a_file_are_refused_by_name_and_not_executed(
    anomalib: Original, imported: Import, tmp_path: Path, place: str
) -> None:
    checkpoint = anomalib_checkpoint(anomalib.network, anomalib.decoders)
    checkpoint[place] = {**checkpoint[place], "trap": Trap(tmp_path / "executed")}
    with pytest.raises(CheckpointError, match=r"file\.pt holds Python objects \(posix\.mkdir\).*state_dict"):
        imported(checkpoint)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"epoch,loss\n", bytes(500), saved([1, 2]), saved({"epoch": 3}), saved({"state_dict": {"w": torch.ones(2)}})],
    ids=["empty", "text", "zeros", "list", "numbers", "another network"],
)
def test_what_is_no_cflow_checkpoint_is_refused_with_what_is(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.ckpt .*Known are the official .*decoder_state_dict.*anomalib 2"):
        parse_foreign(content, "x.ckpt")


def test_a_cut_file_is_refused(official: Original) -> None:
    content = saved(official_checkpoint(official.network, official.decoders[2:]))
    for end in (10, 1000, len(content) // 2, len(content) - 10):
        with pytest.raises(CheckpointError, match=r"x\.pt is neither"):
            parse_foreign(content[:end], "x.pt")


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


def damaged(official: Original, change: str) -> dict[str, Any]:
    """An official checkpoint with one thing wrong."""
    checkpoint = official_checkpoint(official.network, official.decoders)
    first, second, third = (dict(state) for state in checkpoint["decoder_state_dict"])
    scale, rotation = "module_list.1.global_scale", "module_list.0.w_perm"
    decoders: Any = {
        "missing": [first, without(second, scale), third],
        "no first block": [first, without(second, "module_list.0.global_scale"), third],
        "unknown": [{**first, "module_list.0.vk_householder": torch.ones(2, 128)}, second, third],
        "not finite": [first, {**second, scale: second[scale] * float("nan")}, third],
        "no rotation": [first, second, {**third, rotation: 1.1 * third[rotation]}],
        "blocks": [first, freia_decoder(256, blocks=3).state_dict(), third],
        "condition": [first, freia_decoder(256, condition=64).state_dict(), third],
        "odd condition": [freia_decoder(C, condition=6).state_dict() for C in CHANNELS],
        "four": [first, second, third, third],
        "none": [],
        "channels": [freia_decoder(C).state_dict() for C in (64, 128, 256)],
        "no tensors": [first, {"a": 1}, third],
    }.get(change, [first, second, third])
    encoder = checkpoint["encoder_state_dict"]
    if change == "mobilenet":
        encoder = {"0.0.weight": torch.ones(16, 3, 3, 3)}
    if change == "encoder lacks":
        encoder = without(encoder, "layer3.1.conv2.weight")
    return {"encoder_state_dict": encoder, "decoder_state_dict": decoders}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", r"module_list\.1\.global_scale of the decoder of level 1 .* is missing; .*256 .*needs \(1, 256\)"),
        ("no first block", r"level 1 .*'module_list\.0\.global_scale' is missing"),
        ("unknown", r"vk_householder of the decoder of level 0 .* is \(2, 128\); .*needs no such tensor"),
        ("not finite", r"module_list\.1\.global_scale of the decoder of level 1 .* is not finite"),
        ("no rotation", r"module_list\.0\.w_perm of the decoder of level 2 .* is no rotation"),
        ("blocks", "level 0 has 2 blocks and 128 condition channels, level 1 has 3 blocks"),
        ("condition", "level 1 has 2 blocks and 64 condition channels"),
        ("odd condition", "level 0 .*condition_channels.*multiple of 4"),
        ("four", "4 decoders; .*1 to 3 pool layers"),
        ("none", "0 decoders"),
        ("channels", "64, 128, 256 channels, the levels of resnet18 have 128, 256, 512; .*--encoder"),
        ("no tensors", r"decoder_state_dict\[1\] of .* is no state dict"),
        ("mobilenet", r"no ResNet \(first tensor: 0\.0\.weight\)"),
        ("encoder lacks", r"is no resnet18: .*layer3\.1\.conv2\.weight.*--encoder"),
    ],
)
def test_an_official_file_with_something_wrong_is_refused_by_what_it_is(
    official: Original, imported: Import, tmp_path: Path, change: str, says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        imported(damaged(official, change), **for_resnet18())
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"encoder": {"name": "resnet34"}}, r"is no resnet34: .*layer1\.2\.conv1\.weight"),
        ({"encoder": {}}, "is no wide_resnet50_2: .*--encoder"),
        ({"encoder": {"name": "no_such_network"}}, "timm has no"),
        ({"encoder": {"strides": [4, 8, 16]}}, "128, 256, 512 channels, the levels of resnet18 have 64, 128, 256"),
        ({"flow": {"blocks": 8}}, "leave them out of `detector`"),
        ({"input_size": 32}, "resnet18 takes no input of 32 x 32"),  # too small to be reflected
        ({"input_size": 3}, "'input_size' is 3"),
        ({"inputsize": 64}, "unknown key 'inputsize'"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_refused(
    official: Original, imported: Import, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    encoder = settings.get("encoder", {"name": "resnet18"})
    if "strides" in encoder:
        encoder = {"name": "resnet18", **encoder}
    with pytest.raises(CflowRayError, match=says):
        imported(
            official_checkpoint(official.network, official.decoders),
            detector={"input_size": 96, **settings, "encoder": encoder},
        )
    assert not (tmp_path / "registry").exists()


CENTRE_CROP = transforms(("Resize", RESIZE), ("CenterCrop", {"size": [64, 64]}), ("Normalize", NORMALIZE))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hyper_parameters": {"decoder": "other-flow"}}, "hyper_parameters of .*decoder: .*freia-cflow"),
        ({"hyper_parameters": {"layers": ["layer2", "layer9"]}}, r"no level behind \['layer9'\]"),
        ({"hyper_parameters": {"backbone": "vit_small_patch14_dinov2"}}, "behind a last norm"),
        ({"hyper_parameters": ["resnet18"]}, "hyper_parameters of .* cannot be taken over"),
        ({"anomalib_pre_processor_config": CENTRE_CROP}, "has the transform CenterCrop"),
        ({"anomalib_pre_processor_config": transforms(("Resize", RESIZE | {"size": [256]}))}, "Resize of .*size"),
        ({"anomalib_pre_processor_config": transforms(("Resize", RESIZE | {"antialias": False}))}, "antialias"),
        ({"anomalib_pre_processor_config": {"transform": "Resize"}}, "pre-processor of .* cannot be taken over"),
        ({"state_dict": {"model.decoders.0.w": torch.ones(2)}}, "no sequence of FrEIA's AllInOneBlock"),
    ],
)
def test_an_anomalib_file_that_asks_for_something_else_is_refused(
    anomalib: Original, imported: Import, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(CflowRayError, match=says):
        imported(anomalib_checkpoint(anomalib.network, anomalib.decoders) | change)


def test_transforms_without_resize_or_normalisation_leave_the_pixels_as_they_are() -> None:
    torch.manual_seed(0)
    checkpoint = anomalib_checkpoint(nn.Identity(), [freia_decoder(8, soft=False)], layers=["layer3"])
    foreign = parse_foreign(saved(checkpoint | {"anomalib_pre_processor_config": transforms()}), "x")
    assert foreign.named["encoder"]["mean"] == (0, 0, 0)
    assert foreign.named["encoder"]["std"] == (1, 1, 1)
    assert foreign.named["encoder"]["strides"] == (16,)
    assert foreign.assumed == {"input_size": 256}
