"""The frozen backbone that turns images into a feature pyramid, cut after the last level that is used."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import CheckpointError, ConfigError

# Shapes: B images, C channels, H x W pixels; level l of the pyramid has C_l channels at stride s_l.


class Encoder(nn.Module):
    """A timm network in eval mode without gradients: uint8 RGB images in, one feature map a stride out.

    `state` is the state dict of the whole network (classifier included or not). It must hold every tensor of the
    levels in use with the right shape; anything else of it is left out. Raises CheckpointError where it does not
    fit, ConfigError where timm has no such network or the network no such stride.
    """

    def __init__(self, config: EncoderConfig, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.network, self.channels = _build(config)
        needed = self.network.state_dict()
        _check_state(config, needed, state)
        self.network.load_state_dict({name: state[name] for name in needed})
        normalisation = timm.data.resolve_model_data_config(self.network)
        self.register_buffer("mean", 255 * torch.tensor(normalisation["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(normalisation["std"]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Feature maps (B, C_l, H / s_l, W / s_l), float32, of uint8 RGB images; normalised as timm states."""
        mean: Tensor = self.get_buffer("mean")
        levels: list[Tensor] = self.network((images_B3HW.to(mean.device).float() - mean) / self.get_buffer("std"))
        return levels


def _build(config: EncoderConfig) -> tuple[nn.Module, tuple[int, ...]]:
    try:
        strides = timm.create_model(config.name, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError, ValueError, OSError) as error:
        raise ConfigError(f"timm has no feature network {config.name!r}: {error}. See timm.list_models().") from error
    absent = sorted(set(config.strides) - set(strides))
    if absent:
        raise ConfigError(f"{config.name} has no level of stride {absent}; it has {strides}.")
    levels = tuple(strides.index(stride) for stride in config.strides)
    network = timm.create_model(config.name, features_only=True, out_indices=levels)
    _cut_after(network, network.feature_info.module_name()[-1])
    return network, tuple(network.feature_info.channels())


def _cut_after(network: nn.Module, last: str) -> None:
    """Remove the stages behind the one named `last`: timm's EfficientNets keep and run them all."""
    parent, _, index = last.rpartition(".")
    stages = dict(network.named_modules()).get(parent)
    if isinstance(stages, nn.Sequential) and index.isdigit():
        del stages[int(index) + 1 :]


def _check_state(config: EncoderConfig, needed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    absent = [name for name in needed if name not in state]
    if absent:
        raise CheckpointError(
            f"the weights {config.weights!r} lack {len(absent)} tensors of {config.name} (first: {absent[0]}); "
            "give the weights of that network."
        )
    for name, tensor in needed.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} of the weights {config.weights!r} has shape {tuple(state[name].shape)}, "
                f"{config.name} needs {tuple(tensor.shape)}."
            )
