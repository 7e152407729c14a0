"""The registry: versions that never collide, one pointer a category, and encoder weights kept under their digest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import CflowRayError, CheckpointError, StorageError
from cflow_ray.model.fitted import Fitted
from cflow_ray.store.manifest import FORMAT_VERSION, Manifest
from cflow_ray.store.registry import Pointer, Registry, check_category_name
from cflow_ray.store.storage import Storage

AddVersions = Callable[..., list[str]]
MakeFitted = Callable[..., Fitted]
Describe = Callable[..., Callable[[str], Manifest]]

RESNET = EncoderConfig(name="resnet18", strides=(8, 16))


@pytest.fixture(scope="module")
def resnet_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model("resnet18").state_dict()
    return state


def numbered(registry: Registry, category: str, *numbers: int) -> None:
    """Finished versions of chosen numbers; a listing looks at nothing but the manifest's presence."""
    for number in numbers:
        registry.storage.write(f"{category}/v{number}-abcdef/manifest.json", b"{}")


# -- the root


def test_a_registry_must_be_created_once_and_may_be_created_again(storage: Storage) -> None:
    with pytest.raises(CheckpointError, match=re.escape(storage.uri)):
        Registry(storage)
    Registry.create(storage)
    before = storage.read("registry.json")
    Registry.create(storage)
    assert storage.read("registry.json") == before
    assert Registry(storage).categories() == []


@pytest.mark.parametrize("make", [Registry, Registry.create])
def test_a_registry_of_another_format_is_refused(storage: Storage, make: Callable[[Storage], Registry]) -> None:
    storage.write("registry.json", json.dumps({"format_version": FORMAT_VERSION + 1}).encode())
    with pytest.raises(CheckpointError, match=rf"registry\.json has format version {FORMAT_VERSION + 1}"):
        make(storage)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{"])
def test_a_damaged_root_file_is_named(storage: Storage, content: bytes) -> None:
    storage.write("registry.json", content)
    with pytest.raises(CheckpointError, match=r"registry\.json is damaged"):
        Registry(storage)


# -- versions


def test_a_version_is_loaded_as_it_was_added(registry: Registry, make_fitted: MakeFitted, describe: Describe) -> None:
    fitted = make_fitted(seed=5)
    version = registry.add("screw", fitted, describe(fitted), {"preview.png": b"png"})
    manifest = registry.manifest("screw", version)
    assert (manifest.category, manifest.version) == ("screw", version)
    features = [torch.randn(2, 6, 8, 8), torch.randn(2, 5, 4, 4)]
    assert torch.equal(registry.detector("screw", version).maps(features), fitted.detector().maps(features))


def test_a_version_without_calibration_is_not_promoted(
    registry: Registry, make_fitted: MakeFitted, describe: Describe, add_versions: AddVersions
) -> None:
    """As imported weights are before `models calibrate`; what was best stays best."""
    (before,) = add_versions("screw")
    registry.promote("screw", before)
    fitted = make_fitted(seed=5)

    def uncalibrated(version: str) -> Manifest:
        given = describe(fitted)(version).model_dump() | {"peaks": (), "calibration_scores": ()}
        return Manifest.model_validate(given)

    version = registry.add("screw", fitted, uncalibrated)
    assert version in registry.versions("screw")
    with pytest.raises(CheckpointError, match=rf"{version} of 'screw' is not calibrated.*models calibrate screw"):
        registry.promote("screw", version)
    assert registry.best("screw") == before
    assert registry.pointer("screw").history == ()
    with pytest.raises(CheckpointError, match="without calibration"):
        registry.detector("screw", version)
    assert registry.fitted("screw", version).config == fitted.config


def test_versions_count_up_and_are_listed_oldest_first(registry: Registry, add_versions: AddVersions) -> None:
    added = add_versions("screw", 12)
    assert registry.versions("screw") == added
    assert [name.partition("-")[0] for name in added] == [f"v{number}" for number in range(1, 13)]


def test_adding_promotes_nothing(registry: Registry, add_versions: AddVersions) -> None:
    (version,) = add_versions("screw")
    assert registry.categories() == []
    with pytest.raises(
        CheckpointError, match=f"no version of 'screw' is promoted; there are {version}. Run: .* promote"
    ):
        registry.best("screw")
    with pytest.raises(CheckpointError, match="no checkpoint for 'nut'; the registry holds none"):
        registry.best("nut")


def test_a_version_without_manifest_is_none_but_its_number_is_taken(
    registry: Registry, add_versions: AddVersions
) -> None:
    first, second = add_versions("screw", 2)
    registry.storage.remove(f"screw/{second}/manifest.json")
    assert registry.versions("screw") == [first]
    with pytest.raises(CheckpointError, match="no version"):
        registry.promote("screw", second)
    (third,) = add_versions("screw")
    assert third.startswith("v3-")


def test_writers_at_the_same_time_never_collide(
    registry: Registry, make_fitted: MakeFitted, describe: Describe
) -> None:
    made = [make_fitted(seed) for seed in range(8)]

    def add(fitted: Fitted) -> str:
        return registry.add("screw", fitted, describe(fitted))

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(add, made))
    assert len(set(names)) == 8
    assert sorted(registry.versions("screw")) == sorted(names)
    for name, fitted in zip(names, made, strict=True):
        stored = registry.detector("screw", name)
        assert stored.calibration.peaks == fitted.calibration.peaks  # nobody wrote over another


@pytest.mark.parametrize(
    "category", ["", "/", "a/b", "..", ".", "../x", "_encoders", "_runs", ".hidden", "-x", "a\n", "a" * 101, "a\\b"]
)
def test_a_name_that_is_no_folder_of_its_own_is_refused(
    registry: Registry, make_fitted: MakeFitted, describe: Describe, category: str
) -> None:
    before = registry.storage.files()
    fitted = make_fitted()
    with pytest.raises(StorageError, match="cannot name a category"):
        registry.add(category, fitted, describe(fitted, category))
    with pytest.raises(CflowRayError):
        registry.pointer(category)
    with pytest.raises(CflowRayError):
        registry.promote(category, "v1")
    assert registry.storage.files() == before


@pytest.mark.parametrize("category", ["screw", "metal_nut", "01", "pcb 4", "line-7.b", "a" * 100])
def test_names_of_the_field_are_allowed(category: str) -> None:
    check_category_name(category)


@pytest.mark.parametrize("version", ["../../other/v1", ".."])
def test_a_version_that_leaves_the_registry_is_refused(registry: Registry, version: str) -> None:
    with pytest.raises(StorageError, match="leaves"):
        registry.manifest("screw", version)
    with pytest.raises(StorageError, match="leaves"):
        registry.detector("screw", version)


# -- names of versions


def test_a_number_names_its_version_and_not_one_that_starts_like_it(registry: Registry) -> None:
    numbered(registry, "screw", 1, 2, 10, 11)
    assert registry.resolve("screw", "v1") == "v1-abcdef"
    assert registry.resolve("screw", "v10") == "v10-abcdef"
    assert registry.resolve("screw", "v11-abcdef") == "v11-abcdef"
    assert registry.versions("screw") == ["v1-abcdef", "v2-abcdef", "v10-abcdef", "v11-abcdef"]


@pytest.mark.parametrize("version", ["v3", "v", "", "1", "v1-abc", "V1"])
def test_a_name_of_no_version_lists_those_that_are(registry: Registry, version: str) -> None:
    numbered(registry, "screw", 1, 10)
    with pytest.raises(CheckpointError, match=r"no version .*'screw'; there are v1-abcdef, v10-abcdef"):
        registry.resolve("screw", version)


def test_an_ambiguous_name_lists_the_choice(registry: Registry) -> None:
    for suffix in ("aaaaaa", "bbbbbb"):
        registry.storage.write(f"screw/v3-{suffix}/manifest.json", b"{}")
    with pytest.raises(CheckpointError, match=r"several versions 'v3'.*v3-aaaaaa, v3-bbbbbb"):
        registry.resolve("screw", "v3")
    assert registry.resolve("screw", "v3-bbbbbb") == "v3-bbbbbb"


# -- the pointer


def test_promote_moves_the_pointer_and_rollback_takes_it_back(registry: Registry, add_versions: AddVersions) -> None:
    first, second, third = add_versions("screw", 3)
    for version in (first, second, third):
        registry.promote("screw", version)
        assert registry.best("screw") == version
    assert registry.pointer("screw").history == (first, second)
    assert registry.rollback("screw").version == second
    assert registry.rollback("screw").version == first
    assert registry.best("screw") == first
    assert registry.pointer("screw").history == ()
    with pytest.raises(CheckpointError, match="no earlier version"):
        registry.rollback("screw")
    assert registry.versions("screw") == [first, second, third]  # nothing is deleted


def test_promoting_the_best_again_changes_nothing(registry: Registry, add_versions: AddVersions) -> None:
    first, second = add_versions("screw", 2)
    registry.promote("screw", first)
    registry.promote("screw", second)
    before = registry.storage.read("screw/best.json")
    registry.promote("screw", "v2")
    assert registry.storage.read("screw/best.json") == before


def test_rollback_to_a_version_that_was_deleted_is_refused(registry: Registry, add_versions: AddVersions) -> None:
    first, second = add_versions("screw", 2)
    registry.promote("screw", first)
    registry.promote("screw", second)
    registry.storage.remove(f"screw/{first}/manifest.json")
    with pytest.raises(CheckpointError, match=first):
        registry.rollback("screw")
    assert registry.best("screw") == second


def test_the_pointer_is_replaced_whole(registry: Registry, add_versions: AddVersions) -> None:
    """A reader beside a writer sees one pointer or the other, never a mixture or nothing."""
    versions = add_versions("screw", 2)
    registry.promote("screw", versions[0])
    seen = set()
    with ThreadPoolExecutor(1) as pool:
        moves = pool.submit(lambda: [registry.promote("screw", versions[n % 2]) for n in range(60)])
        while not moves.done():
            seen.add(registry.best("screw"))
        assert len(moves.result()) == 60
    assert seen <= set(versions)
    assert len(registry.pointer("screw").history) == 59


def test_an_unknown_category_lists_the_known(registry: Registry, add_versions: AddVersions) -> None:
    for category in ("zipper", "screw"):
        registry.promote(category, add_versions(category)[0])
    assert registry.categories() == ["screw", "zipper"]
    with pytest.raises(CheckpointError, match=r"'zippr'; the registry holds screw, zipper\. .*--category zippr"):
        registry.pointer("zippr")


def test_a_pointer_of_another_format_is_refused_and_not_written_over(
    registry: Registry, add_versions: AddVersions
) -> None:
    (version,) = add_versions("screw")
    content = json.dumps({"format_version": FORMAT_VERSION + 1, "best": version}).encode()
    registry.storage.write("screw/best.json", content)
    for call in (registry.pointer, registry.rollback, registry.best):
        with pytest.raises(CheckpointError, match=f"format version {FORMAT_VERSION + 1}"):
            call("screw")
    with pytest.raises(CheckpointError, match=f"format version {FORMAT_VERSION + 1}"):
        registry.promote("screw", version)
    assert registry.storage.read("screw/best.json") == content


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"format_version": 1}', b'{"format_version": 1, "version": 5}']
)
def test_a_damaged_pointer_is_named_and_the_advice_works(
    registry: Registry, add_versions: AddVersions, content: bytes
) -> None:
    (version,) = add_versions("screw")
    registry.storage.write("screw/best.json", content)
    with pytest.raises(CheckpointError, match=r"best\.json is damaged.*Delete it, then promote"):
        registry.best("screw")
    registry.storage.remove("screw/best.json")
    assert registry.promote("screw", version).version == registry.best("screw") == version


def test_the_pointer_says_when_and_in_which_format(registry: Registry, add_versions: AddVersions) -> None:
    written = registry.promote("screw", add_versions("screw")[0])
    assert Pointer.model_validate_json(registry.storage.read("screw/best.json")) == written
    assert written.format_version == FORMAT_VERSION
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written.promoted)


def test_the_listing_marks_the_best_of_every_category(registry: Registry, add_versions: AddVersions) -> None:
    screw, zipper = add_versions("screw", 3), add_versions("zipper", 1)
    registry.promote("screw", screw[1])
    registry.promote("zipper", zipper[0])
    listed = [(entry.category, entry.version, entry.promoted) for entry in registry.listing()]
    assert listed == [
        ("screw", screw[0], False),
        ("screw", screw[1], True),
        ("screw", screw[2], False),
        ("zipper", zipper[0], True),
    ]


def test_other_files_of_the_root_are_no_categories(registry: Registry, add_versions: AddVersions) -> None:
    registry.promote("screw", add_versions("screw")[0])
    for path in ("_encoders/x.safetensors", "_runs/1/log", "notes/readme.txt", "readme.txt", ".cache/best.json"):
        registry.storage.write(path, b"")
    assert registry.categories() == ["screw"]


# -- encoders


def test_an_encoder_comes_back_as_it_was_kept(registry: Registry, resnet_state: dict[str, Tensor]) -> None:
    from cflow_ray.model.encoder import Encoder

    digest = registry.add_encoder(resnet_state)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for kept, given in zip(
        registry.encoder(RESNET, digest)(images), Encoder(RESNET, resnet_state)(images), strict=True
    ):
        assert torch.equal(kept, given)


def test_weights_are_kept_once_under_a_digest_of_what_they_are(
    registry: Registry, resnet_state: dict[str, Tensor]
) -> None:
    digest = registry.add_encoder(resnet_state)
    assert registry.add_encoder(dict(reversed(resnet_state.items()))) == digest
    name = "layer1.0.conv1.weight"
    nudged = resnet_state[name].clone()
    nudged[0, 0, 0, 0] += 1e-3
    assert registry.add_encoder(resnet_state | {name: nudged}) != digest
    assert len(registry.storage.files("_encoders")) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_weights_of_every_type_are_kept(registry: Registry, dtype: torch.dtype) -> None:
    state = {
        "w": torch.arange(6).view(2, 3).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0).to(dtype),
    }
    name = registry.add_encoder(state)
    stored = safetensors.torch.load(registry.storage.read(f"_encoders/{name}.safetensors"))
    assert registry.add_encoder(stored) == name
    assert (
        registry.add_encoder({key: value.float() for key, value in state.items()}) != name
    )  # other bits, other weights


def test_missing_and_exchanged_encoder_weights_are_refused(registry: Registry, resnet_state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="lacks the encoder weights"):
        registry.encoder(RESNET, "0" * 64)
    digest = registry.add_encoder(resnet_state)
    registry.storage.write(
        f"_encoders/{'0' * 64}.safetensors", registry.storage.read(f"_encoders/{digest}.safetensors")
    )
    with pytest.raises(CheckpointError, match="digest"):
        registry.encoder(RESNET, "0" * 64)


def test_truncated_encoder_weights_are_refused(registry: Registry, resnet_state: dict[str, Tensor]) -> None:
    path = f"_encoders/{registry.add_encoder(resnet_state)}.safetensors"
    registry.storage.write(path, registry.storage.read(path)[:-1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        registry.encoder(RESNET, path.removeprefix("_encoders/").removesuffix(".safetensors"))


def test_weights_of_another_network_are_refused(registry: Registry, resnet_state: dict[str, Tensor]) -> None:
    digest = registry.add_encoder(resnet_state)
    with pytest.raises(CheckpointError, match="resnet50"):
        registry.encoder(EncoderConfig(name="resnet50", strides=(8, 16)), digest)


def test_the_whole_registry_holds_weights_json_and_pictures_only(
    registry: Registry, make_fitted: MakeFitted, describe: Describe, resnet_state: dict[str, Tensor]
) -> None:
    registry.add_encoder(resnet_state)
    fitted = make_fitted()
    registry.promote("screw", registry.add("screw", fitted, describe(fitted), {"preview.png": b"png"}))
    assert {path.rpartition(".")[2] for path in registry.storage.files()} == {"safetensors", "json", "png"}


def test_the_bank_scores_with_what_the_registry_holds(
    registry: Registry, add_scoring_version: Callable[..., tuple[str, Fitted]], resnet_state: dict[str, Tensor]
) -> None:
    from cflow_ray.model.encoder import Encoder

    encoder = Encoder(RESNET, resnet_state)
    version, fitted = add_scoring_version(registry, encoder, resnet_state)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (finding,) = registry.bank().score_batch([image], [("screw", version)])
    detector = fitted.detector(registry.manifest("screw", version).encoder_digest)
    (map_HW,) = detector.maps(encoder(image[None]))
    assert finding.score == detector.score(map_HW)
    assert torch.equal(torch.from_numpy(finding.map_HW), map_HW)
