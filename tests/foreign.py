"""Checkpoints as the official CFLOW-AD code and anomalib write them, from FrEIA's and timm's own modules."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torchvision
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

CHANNELS = (128, 256, 512)
"""Of layer2, layer3 and layer4 of a ResNet-18."""


def subnet_fc(dims_in: int, dims_out: int) -> nn.Module:
    """The official model.py's, and anomalib's."""
    return nn.Sequential(nn.Linear(dims_in, 2 * dims_in), nn.ReLU(), nn.Linear(2 * dims_in, dims_out))


def freia_decoder(
    channels: int, blocks: int = 2, condition: int = 128, soft: bool = True, block: type = AllInOneBlock
) -> SequenceINN:
    """`freia_cflow_head` of the official model.py (`freia_flow_head` without condition), each parameter at work."""
    coder = SequenceINN(channels)
    for _ in range(blocks):
        conditions = {"cond": 0, "cond_shape": (condition,)} if condition else {}
        coder.append(
            block,
            **conditions,
            subnet_constructor=subnet_fc,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
            permute_soft=soft,
        )
    with torch.no_grad():
        for part in coder.module_list:
            part.global_scale.add_(0.5 * torch.randn(part.global_scale.shape))
            part.global_offset.add_(0.1 * torch.randn(part.global_offset.shape))
            part.subnet[2].weight.mul_(5)
    return coder.eval()


@torch.no_grad()
def likelihood(coder: SequenceINN, features_BChw: Tensor, condition_PD: Tensor | None) -> Tensor:
    """Log-likelihood per dimension (B, h, w) as train.py computes it: get_logp(C, z, log_jac_det) / C."""
    B, C, h, w = features_BChw.shape
    fibres_NC = features_BChw.permute(0, 2, 3, 1).reshape(-1, C)
    conditions = [] if condition_PD is None else [condition_PD.repeat(B, 1)]
    latent_NC, log_det_N = coder(fibres_NC, conditions)
    return ((C * -0.9189385332046727 - 0.5 * torch.sum(latent_NC**2, 1) + log_det_N) / C).view(B, h, w)


def with_drawn_statistics(network: nn.Module) -> nn.Module:
    """Running statistics that a mix-up of layers would show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def official_encoder() -> nn.Module:
    """custom_models/resnet.py: torchvision's, its convolutions padded by reflection, without the classifier."""
    network = torchvision.models.resnet18()
    del network.fc
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):
            module.padding_mode = "reflect"
    return with_drawn_statistics(network)


@torch.no_grad()
def official_pyramid(network: nn.Module, inputs_B3HW: Tensor) -> list[Tensor]:
    """Outputs of layer2, layer3 and layer4."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(inputs_B3HW))))
    pyramid = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        pyramid.append(x)
    return pyramid[1:]


def official_checkpoint(network: nn.Module, decoders: Sequence[SequenceINN]) -> dict[str, Any]:
    """What `save_weights` hands to torch.save."""
    return {
        "encoder_state_dict": network.state_dict(),
        "decoder_state_dict": [decoder.state_dict() for decoder in decoders],
    }


def timm_encoder(name: str = "resnet18") -> nn.Module:
    """anomalib's feature extractor, all of timm's levels kept."""
    return with_drawn_statistics(timm.create_model(name, features_only=True, exportable=True, out_indices=(2, 3, 4)))


NORMALIZE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "inplace": False}
RESIZE = {"size": [64, 96], "interpolation": "bilinear", "max_size": None, "antialias": True}


def transforms(*given: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """anomalib_pre_processor_config of a Compose."""
    v2 = "torchvision.transforms.v2"
    described = [{"class_path": f"{v2}.{name}", "init_args": arguments} for name, arguments in given]
    return {"transform": {"class_path": f"{v2}.Compose", "init_args": {"transforms": described}}}


def anomalib_checkpoint(network: nn.Module, decoders: Sequence[SequenceINN], **hyper: Any) -> dict[str, Any]:
    """The entries of a Cflow checkpoint of anomalib 2.7 with Lightning 2.6; `hyper` changes hyper_parameters."""
    state = {
        f"post_processor.{name}": torch.tensor(float("nan"))
        for name in ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
    }
    state |= {f"model.encoder.feature_extractor.{name}": tensor for name, tensor in network.state_dict().items()}
    for level, decoder in enumerate(decoders):
        state |= {f"model.decoders.{level}.{name}": tensor for name, tensor in decoder.state_dict().items()}
    return {
        "epoch": 0,
        "global_step": 147,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"PostProcessor": {"image_min": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(112.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "backbone": "resnet18",
            "layers": ["layer2", "layer3", "layer4"],
            "pre_trained": False,
            "fiber_batch_size": 64,
            "decoder": "freia-cflow",
            "condition_vector": 128,
            "coupling_blocks": 2,
            "clamp_alpha": 1.9,
            "permute_soft": False,
            "lr": 0.0001,
        }
        | hyper,
        "anomalib_components_enabled": {"pre_processor": True, "post_processor": True},
        "anomalib_pre_processor_config": transforms(("Resize", RESIZE), ("Normalize", NORMALIZE)),
        "anomalib_post_processor_config": {"enable_normalization": True, "image_sensitivity": 0.5},
    }


def saved(checkpoint: Any) -> bytes:
    """The bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()
