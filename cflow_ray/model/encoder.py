"""The frozen backbone that turns images into a feature pyramid, cut after the last level that is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from cflow_ray.config import EncoderConfig
from cflow_ray.errors import CheckpointError, ConfigError

# Shapes: B images, C channels, H x W pixels; level l of the pyramid has C_l channels at stride s_l.

# Images of one pass. On a CPU larger batches fall out of the cache: lite0 at 256 px, one thread, takes 31 CPU-ms an
# image at 4 and 40 at 16 (84 without channels_last).
_AT_ONCE = 4


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
        self.network.load_state_dict(_fitting_state(config, self.network.state_dict(), state))
        self.network.to(memory_format=torch.channels_last)
        of_network = timm.data.resolve_model_data_config(self.network)
        for name, values in (("mean", config.mean or of_network["mean"]), ("std", config.std or of_network["std"])):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Feature maps (B, C_l, H / s_l, W / s_l), float32, of uint8 RGB images."""
        at_once = _AT_ONCE if self.get_buffer("mean").is_cpu else len(images_B3HW)
        pyramids = [self.encode(images_b3HW) for images_b3HW in torch.split(images_B3HW, at_once)]
        return [torch.cat(level) for level in zip(*pyramids, strict=True)]

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ConfigError where the network takes no images of this height and width."""
        mean = self.get_buffer("mean")
        try:
            self(torch.zeros(1, 3, *size, dtype=torch.uint8, device=mean.device))
        except (RuntimeError, AssertionError) as error:  # timm's networks raise either
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{self.config.name} takes no input of {size[0]} x {size[1]} pixels: {reason}. Set another input_size."
            ) from error

    def encode(self, images_b3HW: Tensor) -> list[Tensor]:
        """As `forward`, in one pass however many images there are."""
        mean = self.get_buffer("mean")
        inputs_b3HW = (images_b3HW.to(mean.device).float() - mean) / self.get_buffer("std")
        with _precision(self.config, mean.device.type):
            mixed: list[Tensor] = self.network(inputs_b3HW.contiguous(memory_format=torch.channels_last))
        levels = [level.float() for level in mixed]
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":  # timm's Swin and its like
            return [level_bHWC.permute(0, 3, 1, 2) for level_bHWC in levels]
        return levels


def _precision(config: EncoderConfig, device: str) -> AbstractContextManager[object]:
    """In which the network is computed on a kind of device."""
    mixed = device != "cpu" and config.gpu_precision == "bfloat16"
    return torch.autocast(device, torch.bfloat16) if mixed else nullcontext()


def _build(config: EncoderConfig) -> tuple[nn.Module, tuple[int, ...]]:
    levels = config.blocks or _levels_of_strides(config)
    try:
        network = _create(config.name, levels)
    except (IndexError, AssertionError) as error:
        raise ConfigError(f"{config.name} has no blocks {list(levels)}: {error}. Count from 0 to its last.") from error
    _cut_after(network, network.feature_info.module_name()[-1])
    if config.padding == "reflect":
        _reflect_borders(config.name, network)
    return network, tuple(network.feature_info.channels())


def levels_behind(name: str, modules: Sequence[str | int]) -> dict[str, tuple[int, ...]]:
    """The levels that end with these modules of a network, as EncoderConfig names them: `strides` or else `blocks`.

    A module is given by its name or by timm's index. Raises ConfigError where the network has no such level.
    """
    info = _create(name).feature_info
    names = [entry["module"] for entry in info.info]
    absent = [module for module in modules if module not in names and module not in range(len(names))]
    if absent:
        raise ConfigError(f"{name} has no level behind {absent}; its levels end with {', '.join(names)}.")
    indices = tuple(module if isinstance(module, int) else names.index(module) for module in modules)
    strides = tuple(info.info[index]["reduction"] for index in indices)
    if all(info.reduction().count(stride) == 1 for stride in strides):
        return {"strides": strides}
    return {"blocks": indices}


def _levels_of_strides(config: EncoderConfig) -> tuple[int, ...]:
    """timm's indices of the levels with the configured strides."""
    info = _create(config.name).feature_info
    strides = info.reduction()
    absent = sorted(set(config.strides) - set(strides))
    if absent:
        raise ConfigError(
            f"{config.name} has no level of stride {absent}; it has {strides}. Where they are all alike (a ViT), "
            f"choose levels by `blocks`, e.g. {list(info.out_indices)}."
        )
    return tuple(info.out_indices[strides.index(stride)] for stride in config.strides)


def _create(name: str, levels: tuple[int, ...] | None = None) -> Any:
    """timm's feature network, which takes images of any size where it can."""
    arguments: dict[str, Any] = {"features_only": True} | ({"out_indices": levels} if levels else {})
    try:
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            with suppress(TypeError):  # a network with fixed input that knows no other sizes
                return timm.create_model(name, **arguments, dynamic_img_size=True, dynamic_img_pad=True)
        return timm.create_model(name, **arguments)
    except (RuntimeError, AttributeError, ValueError, OSError) as error:
        raise ConfigError(f"timm has no feature network {name!r}: {error}. See timm.list_models().") from error


def _cut_after(network: nn.Module, last: str) -> None:
    """Remove the stages behind the one named `last`: timm's EfficientNets keep and run them all."""
    parent, _, index = last.rpartition(".")
    stages = dict(network.named_modules()).get(parent)
    if isinstance(stages, nn.Sequential) and index.isdigit():
        del stages[int(index) + 1 :]


def _reflect_borders(name: str, network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, Conv2dSame):
            raise ConfigError(f"{name} pads its images itself; padding 'reflect' is for ResNets and their like.")
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "reflect"


def _fitting_state(
    config: EncoderConfig, needed: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of `needed` out of the whole network's state, each present and of the right shape."""
    given = {_plain(name): tensor for name, tensor in state.items()}
    absent = [name for name in needed if _plain(name) not in given]
    if absent:
        raise CheckpointError(
            f"the weights {config.weights!r} lack {len(absent)} tensors of {config.name} (first: {absent[0]}); "
            "give the weights of that network."
        )
    found = {name: given[_plain(name)] for name in needed}
    for name, tensor in needed.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} of the weights {config.weights!r} has shape {tuple(found[name].shape)}, "
                f"{config.name} needs {tuple(tensor.shape)}."
            )
    return found


def _plain(name: str) -> str:
    """A tensor's name less what timm's feature networks do to it: `stages_0.x` for `stages.0.x`, or `model.x` for `x`."""
    return name.removeprefix("model.").removeprefix("body.").replace(".", "_")
