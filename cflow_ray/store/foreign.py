"""Checkpoints of other programs: the official CFLOW-AD code's `.pt` and anomalib 2.x's `.ckpt`, as plain data.

Both hold FrEIA's decoders under FrEIA's names and the encoder's weights. The likelihoods that come of them are FrEIA
0.2's, which are those of the commit that the official code names and of anomalib's own copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from cflow_ray.config import Channels, FlowConfig, Resampling
from cflow_ray.errors import CheckpointError
from cflow_ray.model.encoder import levels_behind
from cflow_ray.model.parameters import block_state, halves, state_shapes
from cflow_ray.store.manifest import describe_damage
from cflow_ray.store.weights import read_plain

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_WEIGHTS = {"weights": "registry"}
_OFFICIAL_STRIDES = (8, 16, 32)  # of its pool layers, of which it takes the last
_CLAMP = 1.9  # fixed in the official code, anomalib's default
_ENCODER_PREFIX = "model.encoder.feature_extractor."
_DECODERS_PREFIX = "model.decoders."
_LARGEST_ROTATION_ERROR = 1e-3
_KNOWN = (
    "Known are the official CFLOW-AD code's .pt (encoder_state_dict, decoder_state_dict) and the .ckpt of anomalib 2.x's "
    "Cflow (state_dict, hyper_parameters, anomalib_pre_processor_config)."
)


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a file of another program says of a detector."""

    program: str
    """`official` or `anomalib`."""
    flow: FlowConfig
    channels: tuple[int, ...]
    """Of every level's decoder."""
    decoders: tuple[dict[str, Tensor], ...]
    """Every level's state under the names of `Decoder.state`."""
    encoder: dict[str, Tensor]
    """The frozen network's weights under timm's names."""
    named: dict[str, Any]
    """Settings of DetectorConfig that the file states or its program fixes."""
    assumed: dict[str, Any] = field(default_factory=dict)
    """Settings that the file leaves open, as the program's own defaults have them."""


def parse_foreign(content: bytes, source: str) -> ForeignCheckpoint:
    """A foreign checkpoint from its bytes, of which nothing is executed; `source` names them in messages.

    Raises CheckpointError where the file is of neither program, incomplete, or asks for what cannot be done here.
    """
    try:
        checkpoint = read_plain(content, source)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_KNOWN}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{source} holds a {type(checkpoint).__name__}, no checkpoint. {_KNOWN}")
    if isinstance(checkpoint.get("decoder_state_dict"), list):
        return _parse_official(checkpoint, source)
    state = checkpoint.get("state_dict")
    if isinstance(state, dict) and any(str(name).startswith(_DECODERS_PREFIX) for name in state):
        return _parse_anomalib(checkpoint, source)
    names = ", ".join(map(str, list(checkpoint)[:8])) or "nothing"
    raise CheckpointError(f"{source} is no CFLOW checkpoint (it holds {names}). {_KNOWN}")


def of_later_freia(checkpoint: ForeignCheckpoint) -> ForeignCheckpoint:
    """The same flow in FrEIA 0.2's parameters, of one that was trained with FrEIA's code since 17 August 2023.

    There a coupling scales by exp(clamp tanh(a / clamp)), in 0.2 by exp(clamp tanh(a)): dividing by clamp what gives a,
    the last linear layer's first half, makes them equal.
    """
    clamp = checkpoint.flow.clamp
    decoders = []
    for state in checkpoint.decoders:
        changed = dict(state)
        for name, tensor in state.items():
            if ".subnet.2." in name:
                stretch, shift = tensor.chunk(2)
                changed[name] = torch.cat([stretch / clamp, shift])
        decoders.append(changed)
    return replace(checkpoint, decoders=tuple(decoders))


# -- the official code: custom_models/utils.py `save_weights`, main.py


def _parse_official(checkpoint: Mapping[str, Any], source: str) -> ForeignCheckpoint:
    encoder = _tensors(checkpoint.get("encoder_state_dict"), "encoder_state_dict", source)
    if "layer4.0.conv1.weight" not in encoder:
        first = next(iter(encoder), "no tensor")
        raise CheckpointError(
            f"the encoder in {source} is no ResNet (first tensor: {first}). The official code takes other networks' "
            "features from inside a block, which cannot be done here; fit the category anew."
        )
    states = [
        _tensors(state, f"decoder_state_dict[{level}]", source)
        for level, state in enumerate(checkpoint["decoder_state_dict"])
    ]
    if not 1 <= len(states) <= len(_OFFICIAL_STRIDES):
        raise CheckpointError(f"{source} holds {len(states)} decoders; the official code has 1 to 3 pool layers.")
    flow, channels, decoders = _read_decoders(states, _CLAMP, source)
    # Lanczos is what Image.ANTIALIAS was. Its ResNets (custom_models/resnet.py) reflect the image at the border.
    fixed = {"strides": _OFFICIAL_STRIDES[-len(states) :], "padding": "reflect", **_WEIGHTS, **_IMAGENET}
    return ForeignCheckpoint(
        program="official",
        flow=flow,
        channels=channels,
        decoders=decoders,
        encoder=encoder,
        named={"encoder": fixed, "resampling": "lanczos"},
        assumed={"encoder": {"name": "wide_resnet50_2"}, "input_size": 256},
    )


# -- anomalib: models/image/cflow/lightning_model.py, utils/serialization.py


class _Given(BaseModel):
    """Part of anomalib's own description of a model; what it says besides is no matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Hyper(_Given):
    """The model's arguments with anomalib's defaults."""

    backbone: str = "wide_resnet50_2"
    layers: tuple[str | int, ...] = ("layer2", "layer3", "layer4")
    decoder: Literal["freia-cflow"] = "freia-cflow"
    clamp_alpha: float = _CLAMP


class _Transform(_Given):
    class_path: str
    init_args: dict[str, Any] = {}


class _Resize(_Given):
    size: tuple[int, int]
    interpolation: Resampling = "bilinear"
    antialias: Literal[True] = True
    max_size: None = None


class _Normalize(_Given):
    mean: Channels
    std: Channels


def _parse_anomalib(checkpoint: Mapping[str, Any], source: str) -> ForeignCheckpoint:
    state = _tensors(checkpoint["state_dict"], "state_dict", source)
    hyper = _given(_Hyper, checkpoint.get("hyper_parameters") or {}, "hyper_parameters", source)
    flow, channels, decoders = _read_decoders(_by_level(_below(state, _DECODERS_PREFIX)), hyper.clamp_alpha, source)
    name = hyper.backbone.partition("__AT__")[0]  # behind it stands where the weights came from
    if "vit" in name.lower():
        raise CheckpointError(
            f"{source} is of the backbone {name!r}, whose features anomalib takes behind a last norm that the pyramid "
            "here does not have; fit the category anew."
        )
    network = {"name": name, **_WEIGHTS, **levels_behind(name, hyper.layers)}
    is_named = hyper.model_fields_set >= {"backbone", "layers"}
    named, assumed = _anomalib_input(checkpoint.get("anomalib_pre_processor_config"), source)
    (named if is_named else assumed).setdefault("encoder", {}).update(network)
    return ForeignCheckpoint(
        "anomalib", flow, channels, decoders, _below(state, _ENCODER_PREFIX), named=named, assumed=assumed
    )


def _anomalib_input(config: Any, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """How images are prepared, from anomalib's description of torchvision's transforms: settings named and assumed."""
    transform = config.get("transform") if isinstance(config, dict) else None
    if transform is None:
        return {"resampling": "bilinear"}, {"input_size": 256, "encoder": dict(_IMAGENET)}
    resize: _Resize | None = None
    normalize = _Normalize(mean=(0, 0, 0), std=(1, 1, 1))
    for kind, arguments in _flat(_given(_Transform, transform, "pre-processor", source), source):
        if kind == "Resize" and resize is None:
            resize = _given(_Resize, arguments, "pre-processor's Resize", source)
        elif kind == "Normalize":
            normalize = _given(_Normalize, arguments, "pre-processor's Normalize", source)
        else:
            raise CheckpointError(
                f"the pre-processor in {source} has the transform {kind}; one Resize and one Normalize can be done here. "
                "Fit the category anew."
            )
    named: dict[str, Any] = {"encoder": {"mean": normalize.mean, "std": normalize.std}}
    if resize is None:
        return named, {"input_size": 256}
    return {**named, "input_size": resize.size, "resampling": resize.interpolation}, {}


def _flat(transform: _Transform, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class names and arguments of transforms, those of a Compose in its place."""
    kind = transform.class_path.rpartition(".")[2]
    if kind != "Compose":
        yield kind, transform.init_args
        return
    for inner in transform.init_args.get("transforms", []):
        yield from _flat(_given(_Transform, inner, "pre-processor", source), source)


AnyGiven = TypeVar("AnyGiven", bound=_Given)


def _given(kind: type[AnyGiven], values: Any, what: str, source: str) -> AnyGiven:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"the {what} of {source} cannot be taken over: {describe_damage(error)}.") from error


# -- what both share: FrEIA's decoders


def _tensors(state: Any, name: str, source: str) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{name} of {source} is no state dict of tensors. {_KNOWN}")
    return state


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _by_level(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    levels = sorted({int(level) for name in state if (level := name.partition(".")[0]).isdigit()})
    return [_below(state, f"{level}.") for level in levels]


def _read_decoders(
    states: Sequence[Mapping[str, Tensor]], clamp: float, source: str
) -> tuple[FlowConfig, tuple[int, ...], tuple[dict[str, Tensor], ...]]:
    """The flow that all levels share, the channels of each, and their states under our names."""
    shapes = [_shape_of_flow(state, level, clamp, source) for level, state in enumerate(states)]
    flows = [flow for _, flow in shapes]
    for level, flow in enumerate(flows):
        if flow != flows[0]:
            raise CheckpointError(
                f"the decoders in {source} differ: level 0 has {_words(flows[0])}, level {level} has {_words(flow)}; "
                "all must be alike."
            )
    channels = tuple(channels for channels, _ in shapes)
    decoders = tuple(
        _read_decoder(state, channels[level], flows[0], f"level {level} of {source}")
        for level, state in enumerate(states)
    )
    return flows[0], channels, decoders


def _shape_of_flow(state: Mapping[str, Tensor], level: int, clamp: float, source: str) -> tuple[int, FlowConfig]:
    """Channels, blocks and length of the condition, from the shapes of the first block's tensors."""
    blocks = {match[1] for name in state if (match := re.match(r"module_list\.(\d+)\.", name))}
    try:
        channels = state["module_list.0.global_scale"].shape[1]
        inputs = state["module_list.0.subnet.0.weight"].shape[1]
        condition = inputs - halves(channels)[0]
        return channels, FlowConfig(blocks=len(blocks), clamp=clamp, condition_channels=condition)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"the decoder of level {level} in {source} is no sequence of FrEIA's AllInOneBlock: {error} is missing."
        ) from error
    except ValidationError as error:
        raise CheckpointError(
            f"the decoder of level {level} in {source} cannot be taken over: {describe_damage(error)}."
        ) from error


def _words(flow: FlowConfig) -> str:
    return f"{flow.blocks} blocks and {flow.condition_channels} condition channels"


def _read_decoder(state: Mapping[str, Tensor], channels: int, flow: FlowConfig, where: str) -> dict[str, Tensor]:
    """A decoder's state as `Decoder.state` names it, its shapes, values and rotations checked."""
    ours = {f"flow.{name}": tensor.float() for name, tensor in state.items() if not name.endswith("w_perm_inv")}
    needed = state_shapes(channels, flow)
    found = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    wrong = sorted({*needed.items()} ^ {*found.items()})
    if wrong:
        name = wrong[0][0]
        raise CheckpointError(
            f"{name.removeprefix('flow.')} of the decoder of {where} is {found.get(name, 'missing')}; a flow of {channels} "
            f"channels with {_words(flow)} needs {needed.get(name, 'no such tensor')}."
        )
    for name, tensor in ours.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name.removeprefix('flow.')} of the decoder of {where} is not finite.")
    for index in range(flow.blocks):
        rotation_CC = block_state(ours, index)["w_perm"]
        if (rotation_CC @ rotation_CC.T - torch.eye(channels)).abs().max() > _LARGEST_ROTATION_ERROR:
            raise CheckpointError(f"module_list.{index}.w_perm of the decoder of {where} is no rotation.")
    return ours
