"""Encoders in a registry, each kept once however many categories share it: weights under their digest, models beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
from torch import Tensor

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import CheckpointError, StorageError
from cflow_ray.model.encoder_model import EncoderModel, encoder_model
from cflow_ray.model.extras import check_installed
from cflow_ray.store.digest import digest
from cflow_ray.store.encoder_models import model_path, read_model, write_model
from cflow_ray.store.storage import Storage

if TYPE_CHECKING:
    from cflow_ray.model.encoder import Encoder

log = logging.getLogger(__name__)


class EncoderStore:
    """A registry's folder of encoders; see the methods of `Registry` that are named after these."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def encoder(self, config: EncoderConfig, weights_digest: str) -> Encoder:
        """The encoder of a configuration with the stored weights of a digest; a mismatch is refused."""
        from cflow_ray.model.encoder import Encoder  # noqa: PLC0415  # with timm

        path = _weights_path(weights_digest)
        if not self._storage.is_file(path):
            raise CheckpointError(
                f"the registry lacks the encoder weights {self._storage.join(path)}; fit again or copy them in."
            )
        try:
            state = safetensors.torch.load(self._storage.read(path))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{self._storage.join(path)} is damaged: {error}. Copy it again.") from error
        if digest(state) != weights_digest:
            raise CheckpointError(f"{self._storage.join(path)} does not have the digest in its name; copy it again.")
        return Encoder(config, state)

    def model(self, config: EncoderConfig, weights_digest: str, size: tuple[int, int]) -> EncoderModel | None:
        """The same encoder for one input size as a model, where one was kept."""
        return read_model(self._storage, model_path(config, weights_digest, size), config.name, size)

    def add(self, state: Mapping[str, Tensor]) -> str:
        """Keep an encoder's weights; returns their digest."""
        name = digest(state)
        path = _weights_path(name)
        if not self._storage.is_file(path):
            content = safetensors.torch.save({key: value.contiguous() for key, value in state.items()})
            self._storage.write(path, content)
        return name

    def add_model(self, encoder: Encoder, weights_digest: str, size: tuple[int, int]) -> EncoderModel | None:
        """Keep the model of an encoder for one input size, where it can be made and is not there yet; returns it."""
        if (kept := self.model(encoder.config, weights_digest, size)) is not None:
            return kept
        try:
            check_installed("keeping an encoder's model", ("onnx",), "onnx")
            model = encoder_model(encoder, size)
        except Exception as error:  # the exporter raises what it likes; all that encode do without
            log.info("%s is not kept as a model: %s", encoder.config.name, error)
            return None
        try:
            write_model(self._storage, model_path(encoder.config, weights_digest, size), model)
        except StorageError as error:
            log.warning("the model of %s is not kept: %s", encoder.config.name, error)
        return model


def _weights_path(weights_digest: str) -> str:
    return f"{weights_digest}.safetensors"
