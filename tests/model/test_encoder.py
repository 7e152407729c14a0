"""The encoder gives the frozen network's features, and refuses weights that are not that network's."""

from __future__ import annotations

import itertools
from statistics import median

import pytest
import timm
import torch
import torchvision
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.data.synthetic import normal_images
from cflow_ray.errors import CheckpointError, ConfigError
from cflow_ray.model import encoder
from cflow_ray.model.encoder import Encoder, levels_behind
from cflow_ray.model.features import encode
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.tiling import Layout

State = dict[str, Tensor]
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
HALF = (torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.5]))


@pytest.mark.parametrize("side", [64, 96])
def test_pyramid_has_strides_8_16_32_and_the_channels_of_lite0(lite0: Encoder, side: int) -> None:
    pyramid = lite0(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert [tuple(level.shape) for level in pyramid] == [
        (2, 40, side // 8, side // 8),
        (2, 112, side // 16, side // 16),
        (2, 320, side // 32, side // 32),
    ]
    assert lite0.channels == (40, 112, 320)
    assert all(level.dtype == torch.float32 for level in pyramid)


def test_bfloat16_is_for_gpus_and_changes_nothing_on_a_cpu(lite0_state: State, photographs: Tensor) -> None:
    plain, mixed = (
        Encoder(EncoderConfig(gpu_precision=precision), lite0_state) for precision in ("float32", "bfloat16")
    )
    assert all(torch.equal(a, b) for a, b in zip(plain(photographs), mixed(photographs), strict=True))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu), "cpu standing in for a GPU"])
def test_in_bfloat16_features_are_float32_and_near_those_of_float32(
    device: str, lite0_state: State, photographs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    exact = Encoder(EncoderConfig(), lite0_state)(photographs)
    mixed = Encoder(EncoderConfig(gpu_precision="bfloat16"), lite0_state)
    if device == "cuda":
        mixed = mixed.to(device)
    else:
        monkeypatch.setattr(encoder, "_precision", lambda config, kind: torch.autocast(kind, torch.bfloat16))
    for level, expected in zip(mixed(photographs), exact, strict=True):
        assert level.dtype == torch.float32
        error = (level.cpu() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert 1e-4 < error < 0.1


def test_in_bfloat16_scores_move_by_no_more_than_is_stated(
    lite0: Encoder, lite0_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/detector.md has it, of a category fitted in float32; a CPU's bfloat16 stands in for a GPU's."""
    drawn = normal_images("grass", 90, "train", side=64)
    images = torch.stack([torch.from_numpy(pixels.copy()).permute(2, 0, 1) for pixels in drawn])
    layout = Layout((64, 64), (64, 64), ((0, 0),))
    config = DetectorConfig(input_size=64, recipe="fast", flow=FlowConfig(blocks=4))
    detector = fit_detector(encode(lite0, ((image, layout) for image in images[:30])), config, seed=0).detector()
    exact = lite0(images[30:])
    monkeypatch.setattr(encoder, "_precision", lambda config, kind: torch.autocast(kind, torch.bfloat16))
    mixed = Encoder(EncoderConfig(gpu_precision="bfloat16"), lite0_state)(images[30:])
    moved = [
        abs(detector.score(one) - detector.score(other))
        for one, other in zip(detector.maps(exact), detector.maps(mixed), strict=True)
    ]
    assert 0 < max(moved) < 0.05
    assert median(moved) < 0.01


@pytest.mark.parametrize(
    ("name", "normalisation"), [("tf_efficientnet_lite0", HALF), ("resnet18", IMAGENET), ("convnext_atto", IMAGENET)]
)
def test_features_are_those_inside_the_whole_network_on_normalised_images(
    name: str, normalisation: tuple[Tensor, Tensor], photographs: Tensor
) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    for module in whole.modules():  # running statistics that a mix-up of layers would show
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    encoder = Encoder(EncoderConfig(name=name, weights="test"), whole.state_dict())

    mean, std = (values.view(1, 3, 1, 1) for values in normalisation)
    with torch.no_grad():
        inside = whole.forward_intermediates((photographs / 255.0 - mean) / std, intermediates_only=True)
    by_side = {features.shape[-1]: features for features in inside}
    for stride, features in zip((8, 16, 32), encoder(photographs), strict=True):
        expected = by_side[64 // stride]
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def with_drawn_statistics(network: torch.nn.Module) -> torch.nn.Module:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def test_the_normalisation_of_a_configuration_replaces_timms(photographs: Tensor) -> None:
    """anomalib feeds every network with ImageNet's, lite0 too."""
    torch.manual_seed(0)
    whole = with_drawn_statistics(timm.create_model("tf_efficientnet_lite0"))
    mean, std = IMAGENET
    config = EncoderConfig(weights="test", mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    with torch.no_grad():
        inputs = (photographs / 255.0 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        inside = whole.forward_intermediates(inputs, intermediates_only=True)
    ours = Encoder(config, whole.state_dict())(photographs)
    timms = Encoder(EncoderConfig(weights="test"), whole.state_dict())(photographs)
    for features, expected, other in zip(ours, inside[2:], timms, strict=True):
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert (other - expected).abs().max() > 0.05 * expected.abs().max()


def test_reflected_borders_are_those_of_convolutions_built_with_them(photographs: Tensor) -> None:
    """As the official code's ResNets, which are torchvision's but for their convolutions' padding_mode."""
    torch.manual_seed(0)
    whole = with_drawn_statistics(torchvision.models.resnet18())
    state = whole.state_dict()
    zeros = Encoder(EncoderConfig(name="resnet18", weights="test"), state)(photographs)
    ours = Encoder(EncoderConfig(name="resnet18", weights="test", padding="reflect"), state)(photographs)
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.padding != (0, 0):
            settings = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
            reflecting = torch.nn.Conv2d(*settings, bias=False, padding_mode="reflect")
            reflecting.load_state_dict(module.state_dict())
            parent, _, last = name.rpartition(".")
            setattr(whole.get_submodule(parent), last, reflecting)
    kept: dict[str, Tensor] = {}
    for name in ("layer2", "layer3", "layer4"):
        whole.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: kept.update({name: output}))
    with torch.no_grad():
        whole((photographs / 255.0 - IMAGENET[0].view(3, 1, 1)) / IMAGENET[1].view(3, 1, 1))
    for features, expected, other in zip(ours, kept.values(), zeros, strict=True):
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert (other - expected).abs().max() > 0.05 * expected.abs().max()


def test_a_network_that_pads_by_itself_cannot_reflect(lite0_state: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="pads its images itself"):
        Encoder(EncoderConfig(padding="reflect"), lite0_state)


@pytest.mark.parametrize(
    ("name", "modules", "levels"),
    [
        ("resnet18", ["layer2", "layer3", "layer4"], {"strides": (8, 16, 32)}),
        ("resnet18", [3, 4], {"strides": (16, 32)}),
        ("tf_efficientnet_lite0", ["blocks.2", "blocks.6"], {"strides": (8, 32)}),
        ("test_vit", ["blocks.1", "blocks.3"], {"blocks": (1, 3)}),
    ],
)
def test_modules_are_found_as_levels(name: str, modules: list[str | int], levels: dict[str, tuple[int, ...]]) -> None:
    assert levels_behind(name, modules) == levels


def test_an_unknown_module_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"resnet18 has no level behind \['layer9', 7\].*layer1, layer2"):
        levels_behind("resnet18", ["layer2", "layer9", 7])


@pytest.mark.parametrize(
    ("name", "side", "strides", "channels"),
    [
        ("dla46_c", 64, (8, 16), (64, 128)),  # timm's list of its levels starts at index 1
        ("test_vit", 160, (16,), (64,)),  # every level has stride 16; wrapped by timm, tensors named model.*
        (
            "swin_tiny_patch4_window7_224",
            224,
            (8, 16),
            (192, 384),
        ),  # timm gives channels last, tensors named layers_0.*
    ],
)
def test_networks_of_other_families_give_the_strides_that_were_asked_for(
    name: str, side: int, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    encoder = Encoder(EncoderConfig(name=name, weights="timm", strides=strides), timm.create_model(name).state_dict())
    pyramid = encoder(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    expected = [(1, C, side // stride, side // stride) for C, stride in zip(channels, strides, strict=True)]
    assert [tuple(level.shape) for level in pyramid] == expected
    assert encoder.channels == channels


FAMILIES = [
    (EncoderConfig(), (40, 112, 320)),
    (EncoderConfig(name="resnet18"), (128, 256, 512)),
    (EncoderConfig(name="wide_resnet50_2"), (512, 1024, 2048)),
    (EncoderConfig(name="mobilenetv3_large_100"), (40, 112, 960)),
    (EncoderConfig(name="efficientnet_b0"), (40, 112, 320)),
    (EncoderConfig(name="convnext_tiny"), (192, 384, 768)),
    (EncoderConfig(name="vit_small_patch16_224", blocks=(2, 5, 8)), (384, 384, 384)),
]


@pytest.mark.parametrize(("config", "channels"), FAMILIES, ids=lambda value: getattr(value, "name", ""))
def test_every_family_takes_images_that_are_not_square(config: EncoderConfig, channels: tuple[int, ...]) -> None:
    state = timm.create_model(config.name).state_dict()
    encoder = Encoder(config, state)
    strides = (16, 16, 16) if config.blocks else config.strides
    assert encoder.channels == channels
    for height, width in ((64, 96), (96, 64)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        pyramid = encoder(images)
        expected = [(2, C, height // stride, width // stride) for C, stride in zip(channels, strides, strict=True)]
        assert [tuple(level.shape) for level in pyramid] == expected
        assert all(level.dtype == torch.float32 and torch.isfinite(level).all() for level in pyramid)
    assert sum(p.numel() for p in encoder.parameters()) < sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("tf_efficientnet_lite0", {"strides": ((8,), (8, 16), (8, 16, 32))}),
        ("resnet18", {"strides": ((8,), (8, 16), (8, 16, 32))}),
        ("convnext_atto", {"strides": ((8,), (8, 16), (8, 16, 32))}),
        ("vit_small_patch16_224", {"blocks": ((2,), (2, 5), (2, 5, 8))}),
    ],
)
def test_stages_after_the_last_level_are_gone_and_nothing_before_changes(
    name: str, levels: dict[str, tuple[tuple[int, ...], ...]]
) -> None:
    torch.manual_seed(0)
    state = timm.create_model(name).state_dict()
    ((kind, choices),) = levels.items()
    encoders = [Encoder(EncoderConfig(name=name, **{kind: choice}), state) for choice in choices]
    sizes = [sum(p.numel() for p in encoder.parameters()) for encoder in encoders]
    assert sizes == sorted(set(sizes))
    images = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    pyramids = [encoder(images) for encoder in encoders]
    for shorter, longer in itertools.pairwise(pyramids):
        assert all(torch.equal(level, same) for level, same in zip(shorter, longer, strict=False))


def test_the_blocks_of_a_transformer_are_those_inside_the_whole_network() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("vit_small_patch16_224", dynamic_img_size=True).eval()
    encoder = Encoder(EncoderConfig(name="vit_small_patch16_224", blocks=(2, 5, 8)), whole.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        inputs = (images / 255.0 - 0.5) / 0.5
        expected = whole.forward_intermediates(inputs, indices=[2, 5, 8], intermediates_only=True)
    for features, same in zip(encoder(images), expected, strict=True):
        torch.testing.assert_close(features, same, rtol=1e-4, atol=1e-4)


def test_a_transformer_asked_for_strides_is_refused_with_a_hint_at_blocks() -> None:
    with pytest.raises(ConfigError, match=r"vit_small_patch16_224 has no level of stride \[8, 32\].*`blocks`"):
        Encoder(EncoderConfig(name="vit_small_patch16_224"), {})


def test_blocks_that_a_transformer_lacks_are_refused_by_number() -> None:
    with pytest.raises(ConfigError, match=r"no blocks \[2, 12\]"):
        Encoder(EncoderConfig(name="vit_small_patch16_224", blocks=(2, 12)), {})


def test_fewer_levels_are_the_same_levels_of_a_shorter_network(
    lite0: Encoder, lite0_state: dict[str, Tensor], photographs: Tensor
) -> None:
    short = Encoder(EncoderConfig(strides=(8, 16)), lite0_state)
    for features, same in zip(short(photographs), lite0(photographs), strict=False):
        assert torch.equal(features, same)
    weights_of_short, weights_of_whole = (sum(p.numel() for p in e.parameters()) for e in (short, lite0))
    assert weights_of_short < 0.5 * weights_of_whole


def test_one_image_alone_has_the_features_it_has_in_a_batch(lite0: Encoder, photographs: Tensor) -> None:
    together = lite0(photographs)
    for index in range(len(photographs)):
        for alone, batch in zip(lite0(photographs[[index]]), together, strict=True):
            assert (alone[0] - batch[index]).abs().max() <= 1e-5 * batch.abs().max()


def test_encoder_is_frozen(lite0: Encoder, photographs: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in lite0.state_dict().items()}
    pyramid = lite0(photographs)
    assert not lite0.training
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    assert not any(level.requires_grad for level in pyramid)
    assert all(torch.equal(before[name], tensor) for name, tensor in lite0.state_dict().items())  # running statistics


def test_weights_that_lack_a_tensor_are_refused_by_its_name(lite0_state: dict[str, Tensor]) -> None:
    lacking = {name: tensor for name, tensor in lite0_state.items() if name != "blocks.3.1.conv_pw.weight"}
    with pytest.raises(CheckpointError, match=r"blocks\.3\.1\.conv_pw\.weight"):
        Encoder(EncoderConfig(), lacking)


def test_weights_of_another_shape_are_refused_by_name_and_both_shapes(lite0_state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"conv_stem\.weight .*\(32, 3, 5, 5\).*\(32, 3, 3, 3\)"):
        Encoder(EncoderConfig(), {**lite0_state, "conv_stem.weight": torch.zeros(32, 3, 5, 5)})


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="tf_efficientnet_lite0"):
        Encoder(EncoderConfig(), timm.create_model("resnet18").state_dict())


def test_tensors_past_the_last_level_are_not_needed(lite0_state: dict[str, Tensor]) -> None:
    without_head = {
        name: tensor
        for name, tensor in lite0_state.items()
        if not name.startswith(("conv_head", "bn2", "classifier", "blocks.5", "blocks.6"))
    }
    assert len(without_head) < len(lite0_state)
    assert Encoder(EncoderConfig(strides=(8, 16)), without_head).channels == (40, 112)


@pytest.mark.parametrize("name", ["no_such_network", "", "tf_efficientnet_lite0.no_such_tag", "source:network"])
def test_unknown_network_is_a_configuration_error(name: str) -> None:
    with pytest.raises(ConfigError, match="timm"):
        Encoder(EncoderConfig(name=name), {})


def test_unknown_stride_is_a_configuration_error_that_lists_the_strides(lite0_state: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"stride \[64\].*2, 4, 8, 16, 32"):
        Encoder(EncoderConfig(strides=(8, 64)), lite0_state)
