"""Encoders' ONNX models in a registry, beside the weights of which they were made: one a configuration and input size.

They are there for speed alone. One that is damaged is passed over, and what reads it makes the encoder of its weights.
"""

from __future__ import annotations

import hashlib
import json
import logging

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.model.encoder_model import EncoderModel
from cflow_ray.store.digest import digest
from cflow_ray.store.storage import Storage

log = logging.getLogger(__name__)

_FORMAT = 1  # of the graph and of the file
_MODEL = "model"
_DIGEST = "digest"
_LEVEL = "level_{}"


def model_path(config: EncoderConfig, weights_digest: str, size: tuple[int, int]) -> str:
    """Where the model of an encoder lies; what it depends on names it."""
    network = [_FORMAT, size, config.model_dump(mode="json", exclude={"weights"})]
    name = hashlib.sha256(json.dumps(network, sort_keys=True).encode()).hexdigest()[:16]
    return f"{weights_digest}/{name}.safetensors"


def write_model(storage: Storage, path: str, model: EncoderModel) -> None:
    """Keep a model."""
    state = {_MODEL: torch.frombuffer(bytearray(model.content), dtype=torch.uint8)}
    state |= {_LEVEL.format(level): features for level, features in enumerate(model.features)}
    storage.write(path, safetensors.torch.save(state | {_DIGEST: _as_tensor(digest(state))}))


def read_model(storage: Storage, path: str, name: str, size: tuple[int, int]) -> EncoderModel | None:
    """The model of the network of a name; None where there is none, or a damaged one."""
    content = storage.read_if_there(path)
    if content is None:
        return None
    try:
        state = safetensors.torch.load(content)
        if not torch.equal(state.pop(_DIGEST), _as_tensor(digest(state))):
            raise ValueError("it does not have the digest that stands in it")
        features = tuple(state[_LEVEL.format(level)] for level in range(len(state) - 1))
        return EncoderModel(name, size, state[_MODEL].numpy().tobytes(), features)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        log.warning("%s is damaged and passed over: %s. Delete it.", storage.join(path), error)
        return None


def _as_tensor(hexadecimal: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(hexadecimal), dtype=torch.uint8)
