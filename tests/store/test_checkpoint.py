"""Checkpoints: what is loaded scores as what was saved, and what does not fit is refused with the reason."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from FrEIA.modules import AllInOneBlock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.errors import CheckpointError, StorageError
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.flow import Decoder
from cflow_ray.model.scoring import Calibration
from cflow_ray.store.checkpoint import load_checkpoint, load_fitted, save_checkpoint
from cflow_ray.store.manifest import FORMAT_VERSION, Manifest, read_manifest
from cflow_ray.store.storage import Storage

CHANNELS = (6, 5)
PREVIEW = b"\x89PNG"
State = dict[str, Tensor]


@pytest.fixture
def fitted(make_fitted: Callable[..., Fitted]) -> Fitted:
    return make_fitted(seed=3)


@pytest.fixture
def manifest(fitted: Fitted, describe: Callable[..., Callable[[str], Manifest]]) -> Manifest:
    return describe(fitted, encoder_digest="d" * 64)("v1-abcdef")


@pytest.fixture
def saved(storage: Storage, fitted: Fitted, manifest: Manifest) -> Storage:
    save_checkpoint(storage, fitted, manifest, {"preview.png": PREVIEW})
    return storage


def pyramid(images: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(images, C, side, side, generator=generator) for C, side in zip(CHANNELS, (8, 4), strict=True)]


def edit_manifest(storage: Storage, **changes: Any) -> None:
    content = json.loads(storage.read("manifest.json"))
    storage.write("manifest.json", json.dumps(content | changes).encode())


def edit_weights(storage: Storage, edit: Callable[[State], State]) -> None:
    state = edit(safetensors.torch.load(storage.read("decoders.safetensors")))
    storage.write("decoders.safetensors", safetensors.torch.save(state))


# -- round trip


def test_what_is_loaded_scores_bit_for_bit_as_what_was_saved(saved: Storage, fitted: Fitted) -> None:
    detector, loaded = fitted.detector("d" * 64), load_checkpoint(saved)
    maps, again = detector.maps(pyramid()), loaded.maps(pyramid())
    assert torch.equal(maps, again)
    assert [detector.score(map_HW) for map_HW in maps] == [loaded.score(map_HW) for map_HW in again]
    assert maps.std() > 0
    assert loaded.calibration == detector.calibration == fitted.calibration
    assert loaded.config == fitted.config
    assert loaded.encoder_digest == detector.encoder_digest == "d" * 64


def test_another_detector_scores_otherwise(saved: Storage, make_fitted: Callable[..., Fitted]) -> None:
    other = make_fitted(seed=4).detector()
    assert not torch.allclose(load_checkpoint(saved).maps(pyramid()), other.maps(pyramid()))


def test_the_manifest_comes_back_whole(saved: Storage, manifest: Manifest) -> None:
    assert read_manifest(saved) == manifest
    assert manifest.format_version == FORMAT_VERSION
    assert {"torch", "timm", "FrEIA", "cflow_ray"} <= set(manifest.packages)


def test_a_loaded_rotation_inverts_as_the_fitted_one_does(saved: Storage) -> None:
    for decoder in load_fitted(saved).decoders:
        for block in decoder.flow:
            torch.testing.assert_close(block.w_perm @ block.w_perm_inv, torch.eye(decoder.channels))


def test_freias_decoders_come_back_as_they_were(saved: Storage, fitted: Fitted) -> None:
    """What goes on from the weights gets every one of them, inverse rotations included."""
    loaded = load_fitted(saved)
    assert (loaded.config, loaded.calibration, loaded.region_HW) == (fitted.config, fitted.calibration, None)
    for decoder, other in zip(fitted.decoders, loaded.decoders, strict=True):
        state, again = decoder.state_dict(), other.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[name], again[name]) for name in state)


def test_loading_does_not_depend_on_a_global_seed(saved: Storage) -> None:
    maps = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        maps.append(load_checkpoint(saved).maps(pyramid()))
    assert torch.equal(*maps)


def test_loading_to_score_builds_no_module_of_freias(saved: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a module of FrEIA's was built")

    monkeypatch.setattr(AllInOneBlock, "__init__", refuse)
    with pytest.raises(AssertionError, match="was built"):
        load_fitted(saved)
    assert load_checkpoint(saved).maps(pyramid()).shape == (3, 64, 64)


# -- settings that change what is stored


def save(storage: Storage, fitted: Fitted, describe: Callable[..., Callable[[str], Manifest]], **changes: Any) -> None:
    given = describe(fitted)("v1-abcdef").model_dump() | changes
    save_checkpoint(storage, fitted, Manifest.model_validate(given), {})


def test_half_precision_halves_the_file_and_hardly_moves_a_score(
    local: Storage, describe: Callable[..., Callable[[str], Manifest]]
) -> None:
    """Decoders of a real level's width, around features that are likely, as after a fit."""
    flow = FlowConfig(blocks=4, condition_channels=32)
    features = pyramid_of(40, 112)
    scores, sizes = [], []
    for dtype in ("float32", "float16"):
        generator = torch.Generator().manual_seed(0)
        encoder = EncoderConfig(name="resnet18", strides=(8, 16))
        config = DetectorConfig(encoder=encoder, flow=flow, input_size=64, dtype=dtype)
        decoders = tuple(near_normal(Decoder(channels, flow, generator), generator) for channels in (40, 112))
        fitted = Fitted(config, decoders, Calibration.of([-1.5, -1.5], [0.5]))
        storage = local.child(dtype)
        save(storage, fitted, describe, channels=(40, 112))
        detector = load_checkpoint(storage)
        scores.append([detector.score(map_HW) for map_HW in detector.maps(features)])
        sizes.append(len(storage.read("decoders.safetensors")))
    assert sizes[1] < 0.53 * sizes[0]
    differences = [abs(one - other) for one, other in zip(*scores, strict=True)]
    assert 0 < max(differences) < 2e-3
    assert min(abs(one - other) for one, other in itertools.pairwise(sorted(scores[0]))) > 0


def test_what_a_fit_rounded_to_half_precision_scores_bit_for_bit_once_it_is_loaded(
    storage: Storage, make_fitted: Callable[..., Fitted], describe: Callable[..., Callable[[str], Manifest]]
) -> None:
    fitted = make_fitted(dtype="float16")
    unrounded = fitted.detector().maps(pyramid())
    for decoder in fitted.decoders:
        decoder.round_to("float16")
    save(storage, fitted, describe)
    maps = load_checkpoint(storage).maps(pyramid())
    assert torch.equal(maps, fitted.detector().maps(pyramid()))
    assert not torch.equal(maps, unrounded)


def near_normal(decoder: Decoder, generator: torch.Generator) -> Decoder:
    with torch.no_grad():
        for block in decoder.blocks:
            for parameter in (block.global_scale, block.global_offset):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return decoder


def pyramid_of(*channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, C, side, side, generator=generator) for C, side in zip(channels, (8, 4), strict=True)]


def test_in_half_precision_scales_offsets_and_biases_stay_float32(
    storage: Storage, make_fitted: Callable[..., Fitted], describe: Callable[..., Callable[[str], Manifest]]
) -> None:
    """A constant channel's scale is 1e4, whose parameter is 1e5: half precision ends at 65504."""
    fitted = make_fitted(dtype="float16")
    with torch.no_grad():
        fitted.decoders[0].blocks[0].global_scale[0, 0] = 2e5
    save(storage, fitted, describe)
    stored = safetensors.torch.load(storage.read("decoders.safetensors"))
    for name, tensor in stored.items():
        is_matrix = name.endswith(("weight", "w_perm"))
        assert tensor.dtype == (torch.float16 if is_matrix else torch.float32), name
    (decoder, _) = load_fitted(storage).decoders
    assert decoder.blocks[0].global_scale[0, 0] == 2e5
    assert all(parameter.dtype == torch.float32 for parameter in decoder.parameters())
    assert torch.isfinite(load_checkpoint(storage).maps(pyramid())).all()


def test_the_region_of_interest_comes_back(
    storage: Storage, make_fitted: Callable[..., Fitted], describe: Callable[..., Callable[[str], Manifest]]
) -> None:
    fitted = make_fitted(region="/regions/screw.png", input_size=(64, 96))
    save(storage, fitted, describe)
    detector, again = load_checkpoint(storage), load_fitted(storage)
    for region_HW in (detector.region_HW, again.region_HW):
        assert region_HW is not None
        assert region_HW.dtype == torch.bool
        assert torch.equal(region_HW, fitted.region_HW)
    maps_BHW = detector.maps(pyramid())
    assert [detector.score(map_HW) for map_HW in maps_BHW] == [fitted.detector().score(map_HW) for map_HW in maps_BHW]


def of_another_size(state: State) -> State:
    return state | {"region": torch.ones(32, 96, dtype=torch.uint8)}


def without_region(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "region"}


@pytest.mark.parametrize(("edit", "found"), [(of_another_size, r"\(32, 96\)"), (without_region, "missing")])
def test_a_region_that_does_not_fit_the_input_is_refused_by_name(
    storage: Storage,
    make_fitted: Callable[..., Fitted],
    describe: Callable[..., Callable[[str], Manifest]],
    edit: Callable[[State], State],
    found: str,
) -> None:
    save(storage, make_fitted(region="/regions/screw.png", input_size=(64, 96)), describe)
    edit_weights(storage, edit)
    with pytest.raises(CheckpointError, match=rf"does not fit its manifest: region is {found}.*\(64, 96\)"):
        load_checkpoint(storage)


def test_a_region_that_is_not_configured_is_refused(saved: Storage) -> None:
    edit_weights(saved, lambda state: state | {"region": torch.ones(64, 64, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=r"region is \(64, 64\).*no such tensor"):
        load_checkpoint(saved)


def test_weights_without_calibration_go_on_but_do_not_score(
    storage: Storage, fitted: Fitted, describe: Callable[..., Callable[[str], Manifest]]
) -> None:
    save(storage, fitted, describe, peaks=(), calibration_scores=())
    assert not read_manifest(storage).is_calibrated
    with pytest.raises(CheckpointError, match=r"without calibration.*models calibrate screw v1-abcdef"):
        load_checkpoint(storage)
    loaded = load_fitted(storage)
    assert loaded.calibration == Calibration((), ())
    assert torch.equal(loaded.decoders[1].blocks[0].w_perm, fitted.decoders[1].blocks[0].w_perm)


# -- what lies on the disk


def test_the_files_are_weights_text_and_picture_and_nothing_is_pickled(saved: Storage) -> None:
    assert saved.files() == ["decoders.safetensors", "manifest.json", "preview.png"]
    assert saved.read("preview.png") == PREVIEW
    for path in saved.files():
        assert not saved.read(path).startswith((b"\x80", b"PK"))  # pickle, and torch's zip of pickles


def test_without_attachments_there_are_two_files(storage: Storage, fitted: Fitted, manifest: Manifest) -> None:
    save_checkpoint(storage, fitted, manifest, {})
    assert storage.files() == ["decoders.safetensors", "manifest.json"]


def test_no_inverse_matrix_and_no_encoder_is_stored(saved: Storage, fitted: Fitted) -> None:
    state = safetensors.torch.load(saved.read("decoders.safetensors"))
    assert not [name for name in state if "inv" in name]
    rotations = {name: tensor for name, tensor in state.items() if name.endswith("w_perm")}
    assert len(rotations) == fitted.config.flow.blocks * len(CHANNELS)
    everything = sum(tensor.numel() for decoder in fitted.decoders for tensor in decoder.state_dict().values())
    inverses = sum(tensor.numel() for tensor in rotations.values())
    assert sum(tensor.numel() for tensor in state.values()) == everything - inverses


class FullDisk(Storage):
    """Storage on which everything but the manifest can be written."""

    def write(self, path: str, content: bytes) -> None:
        if path == "manifest.json":
            raise StorageError("no space left")
        super().write(path, content)


def test_the_manifest_is_written_last(local: Storage, fitted: Fitted, manifest: Manifest) -> None:
    with pytest.raises(StorageError, match="no space"):
        save_checkpoint(FullDisk(local.uri), fitted, manifest, {"preview.png": PREVIEW})
    assert local.files() == ["decoders.safetensors", "preview.png"]


# -- what is refused


def test_another_format_version_is_refused_by_name(saved: Storage) -> None:
    edit_manifest(saved, format_version=FORMAT_VERSION + 1, something_new=True)
    with pytest.raises(CheckpointError, match=rf"format version {FORMAT_VERSION + 1}.*reads {FORMAT_VERSION}"):
        load_checkpoint(saved)


def test_another_freia_is_refused_by_name(saved: Storage) -> None:
    edit_manifest(saved, freia_version="0.3")
    with pytest.raises(CheckpointError, match=r"FrEIA 0\.3.*0\.2"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"{}", b'{"format_version": 1}']
)
def test_a_manifest_that_is_none_is_refused_by_place(saved: Storage, content: bytes) -> None:
    saved.write("manifest.json", content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(saved)


def test_every_field_without_default_is_needed(saved: Storage) -> None:
    whole = json.loads(saved.read("manifest.json"))
    for name, field in Manifest.model_fields.items():
        if field.is_required():
            saved.write("manifest.json", json.dumps({key: whole[key] for key in whole if key != name}).encode())
            with pytest.raises(CheckpointError, match=name):
                read_manifest(saved)


@pytest.mark.parametrize("changes", [{"peaks": [0.0]}, {"peaks": [0.0, 0.0, 0.0]}, {"channels": [6]}])
def test_as_many_peaks_channels_and_strides_are_needed(saved: Storage, changes: dict[str, Any]) -> None:
    edit_manifest(saved, **changes)
    with pytest.raises(CheckpointError, match="2 levels"):
        load_checkpoint(saved)


def test_a_missing_file_is_named(saved: Storage) -> None:
    saved.remove("decoders.safetensors")
    with pytest.raises(StorageError, match=r"decoders\.safetensors does not exist"):
        load_checkpoint(saved)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_weights_are_refused(saved: Storage, length: int) -> None:
    saved.write("decoders.safetensors", saved.read("decoders.safetensors")[:length])
    with pytest.raises(CheckpointError, match=r"decoders\.safetensors is damaged"):
        load_checkpoint(saved)


def without_a_tensor(state: State) -> State:
    return dict(list(state.items())[1:])


def without_a_level(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("level1.")}


def with_one_more(state: State) -> State:
    return state | {"level0.flow.other": torch.zeros(1)}


def with_transposed_layer(state: State) -> State:
    return {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in state.items()}


def with_flat_rotation(state: State) -> State:
    return {name: tensor.flatten() if name.endswith("w_perm") else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "edit", [without_a_tensor, without_a_level, with_one_more, with_transposed_layer, with_flat_rotation]
)
def test_weights_that_do_not_fit_the_manifest_are_refused(saved: Storage, edit: Callable[[State], State]) -> None:
    edit_weights(saved, edit)
    with pytest.raises(CheckpointError, match=r"decoders\.safetensors does not fit its manifest"):
        load_checkpoint(saved)


def test_the_first_tensor_that_does_not_fit_is_named_with_both_shapes(saved: Storage) -> None:
    name = "level1.flow.module_list.1.subnet.2.bias"
    edit_weights(saved, lambda state: state | {name: torch.zeros(7)})
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is \(7,\), the manifest asks for \(4,\)"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_fitted(saved)


def test_weights_of_another_flow_are_refused(saved: Storage) -> None:
    config = json.loads(saved.read("manifest.json"))["detector"]
    config["flow"]["blocks"] = 3
    edit_manifest(saved, detector=DetectorConfig.model_validate(config).model_dump(mode="json"))
    with pytest.raises(CheckpointError, match="does not fit its manifest"):
        load_checkpoint(saved)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_header_is_refused_or_harmless(local: Storage, data: st.DataObject) -> None:
    tensors = {"level0.a": torch.zeros(2, 3), "level0.b": torch.zeros(4)}
    content = bytearray(safetensors.torch.save(tensors))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1)):
        content[at] = value
    local.write("decoders.safetensors", bytes(content))
    manifest = Manifest(
        category="c",
        version="v1",
        detector=DetectorConfig.model_validate({"encoder": {"strides": [8]}, "flow": {"blocks": 2}}),
        encoder_digest="",
        channels=(6,),
        peaks=(0.0,),
        calibration_scores=(),
    )
    local.write("manifest.json", manifest.model_dump_json().encode())
    with pytest.raises(CheckpointError, match=r"decoders\.safetensors"):  # these tensors fit no decoder anyway
        load_checkpoint(local)
