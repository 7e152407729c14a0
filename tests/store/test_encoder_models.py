"""Encoders' models in a registry: what scores with them makes no encoder, and what is damaged is passed over."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import StorageError
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.encoder_model import EncoderModel, encoder_model
from cflow_ray.model.fitted import Fitted
from cflow_ray.store.registry import CheckpointKey, Registry
from cflow_ray.store.storage import Storage

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RESNET = EncoderConfig(name="resnet18", strides=(8, 16))
SIZE = (64, 64)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(RESNET, timm.create_model("resnet18").state_dict())


@pytest.fixture(scope="module")
def model(encoder: Encoder) -> EncoderModel:
    return encoder_model(encoder, SIZE)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(Storage(str(tmp_path / "registry")))


@pytest.fixture
def key(registry: Registry, encoder: Encoder, add_scoring_version: Callable[..., tuple[str, Fitted]]) -> CheckpointKey:
    """A version whose encoder the registry holds, as weights alone."""
    version, _ = add_scoring_version(registry, encoder, encoder.network.state_dict())
    return "screw", version


def digest_of(registry: Registry, key: CheckpointKey) -> str:
    return registry.manifest(*key).encoder_digest


def map_of(bank: DetectorBank[CheckpointKey], key: CheckpointKey) -> np.ndarray:
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (finding,) = bank.score_batch([image], [key])
    return finding.map_HW


def test_a_model_comes_back_as_it_was_kept(registry: Registry, encoder: Encoder, model: EncoderModel) -> None:
    assert registry.encoder_model(RESNET, "0" * 64, SIZE) is None
    made = registry.add_encoder_model(encoder, "0" * 64, SIZE)
    kept = registry.encoder_model(RESNET, "0" * 64, SIZE)
    assert made is not None
    assert kept is not None
    assert made.content == kept.content
    assert (kept.name, kept.size, kept.sizes) == ("resnet18", SIZE, ((8, 8), (4, 4)))
    assert kept.content == model.content
    assert all(torch.equal(level, wanted) for level, wanted in zip(kept.features, model.features, strict=True))


def test_a_model_is_of_one_configuration_size_and_weights(registry: Registry, encoder: Encoder) -> None:
    registry.add_encoder_model(encoder, "0" * 64, SIZE)
    elsewhere = RESNET.model_copy(update={"weights": "s3://line/resnet18.safetensors"})
    assert registry.encoder_model(elsewhere, "0" * 64, SIZE) is not None  # the digest says which weights
    others = [RESNET.model_copy(update=changes) for changes in ({"mean": (0.0, 0.0, 0.0)}, {"padding": "reflect"})]
    assert [registry.encoder_model(other, "0" * 64, SIZE) for other in others] == [None, None]
    assert registry.encoder_model(RESNET, "1" * 64, SIZE) is None
    assert registry.encoder_model(RESNET, "0" * 64, (64, 96)) is None


def test_who_has_a_model_makes_no_encoder(
    registry: Registry, encoder: Encoder, key: CheckpointKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = map_of(registry.bank(runtime="onnxruntime"), key)
    registry.add_encoder_model(encoder, digest_of(registry, key), SIZE)
    by_torch = map_of(registry.bank(runtime="torch"), key)

    def made(*network: object) -> Encoder:
        raise AssertionError("the encoder was made of its weights")

    monkeypatch.setattr(registry, "encoder", made)
    with_model = map_of(registry.bank(runtime="auto"), key)
    assert np.array_equal(with_model, without)
    assert np.abs(with_model - by_torch).max() <= 1e-5
    with pytest.raises(AssertionError, match="made of its weights"):
        map_of(registry.bank(runtime="torch"), key)


def test_a_process_that_scores_imports_neither_timm_nor_freia(
    registry: Registry, encoder: Encoder, key: CheckpointKey
) -> None:
    registry.add_encoder_model(encoder, digest_of(registry, key), SIZE)
    code = f"""
import sys, torch
import cflow_ray.score.scorer, cflow_ray.serve.service
from cflow_ray.store.registry import Registry
from cflow_ray.store.storage import Storage
bank = Registry(Storage({registry.storage.uri!r})).bank(runtime="onnxruntime")
bank.score_batch([torch.zeros(3, 64, 64, dtype=torch.uint8)], [{key!r}])
print([name for name in ("timm", "torchvision", "FrEIA", "torchmetrics", "torch._dynamo") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["[]"]


@pytest.mark.parametrize("damage", [lambda content: content[:-1000], lambda content: b"", lambda content: b"x" * 99])
def test_a_damaged_model_is_passed_over_and_named(
    registry: Registry,
    encoder: Encoder,
    key: CheckpointKey,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    without = map_of(registry.bank(runtime="onnxruntime"), key)
    registry.add_encoder_model(encoder, digest_of(registry, key), SIZE)
    (path,) = (path for path in registry.storage.files("_encoders") if path.count("/") == 2)
    registry.storage.write(path, damage(registry.storage.read(path)))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(map_of(registry.bank(runtime="onnxruntime"), key), without)
    assert f"{path} is damaged and passed over" in caplog.text


def test_a_model_with_other_bits_is_damaged(registry: Registry, encoder: Encoder, key: CheckpointKey) -> None:
    registry.add_encoder_model(encoder, digest_of(registry, key), SIZE)
    (path,) = (path for path in registry.storage.files("_encoders") if path.count("/") == 2)
    content = bytearray(registry.storage.read(path))
    content[-5000] ^= 1
    registry.storage.write(path, bytes(content))
    assert registry.encoder_model(RESNET, digest_of(registry, key), SIZE) is None
    registry.add_encoder_model(encoder, digest_of(registry, key), SIZE)  # whoever has the encoder makes it anew
    assert registry.encoder_model(RESNET, digest_of(registry, key), SIZE) is not None


def test_a_model_that_cannot_be_written_is_there_for_who_made_it(
    registry: Registry, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(storage: Storage, path: str, content: bytes) -> None:
        raise StorageError(f"{path} cannot be written")

    monkeypatch.setattr(Storage, "write", refuse)
    assert registry.add_encoder_model(encoder, "0" * 64, SIZE) is not None
    assert registry.encoder_model(RESNET, "0" * 64, SIZE) is None


def test_an_encoder_that_cannot_be_exported_is_not_kept(
    registry: Registry, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(encoder: Encoder, size: tuple[int, int]) -> EncoderModel:
        raise RuntimeError("no such operation")

    monkeypatch.setattr("cflow_ray.store.encoders.encoder_model", refuse)
    assert registry.add_encoder_model(encoder, "0" * 64, SIZE) is None
    assert registry.storage.files("_encoders") == []


def test_features_of_a_model_have_to_be_met(registry: Registry, encoder: Encoder, key: CheckpointKey) -> None:
    """A runtime that computes otherwise than torch did is not believed, wherever the model was made."""
    expected: list[Tensor] = [2 * level for level in encoder_model(encoder, SIZE).features]
    other = replace(encoder_model(encoder, SIZE), features=tuple(expected))
    bank = DetectorBank[CheckpointKey](
        lambda one: registry.detector(*one),
        registry.encoder,
        runtime=registry.bank(runtime="auto")._runtime,
        load_model=lambda *network: other,
    )
    expected_map = map_of(registry.bank(runtime="torch"), key)
    assert np.abs(map_of(bank, key) - expected_map).max() <= 1e-5
