"""The decoder is an exact density: invertible, its log-determinant autograd's, its forward FrEIA's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from cflow_ray.config import FlowConfig
from cflow_ray.model.flow import Decoder, sample_rotation
from cflow_ray.model.parameters import halves, state_shapes

MakeDecoder = Callable[..., Decoder]


def fibres_and_condition(
    count: int, channels: int, condition_channels: int = 8, seed: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, channels, generator=generator, dtype=torch.float64),
        torch.randn(count, condition_channels, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("channels", [2, 3, 5, 8, 41])
def test_inverse_gives_the_fibres_back(make_decoder: MakeDecoder, channels: int) -> None:
    decoder = make_decoder(channels).double()
    for block in decoder.blocks:  # the float32 rotation is orthogonal to 1e-7 only: take the exact inverse of it
        block.w_perm_inv.data = torch.linalg.inv(block.w_perm)
    fibres_NC, condition_ND = fibres_and_condition(50, channels)
    latent_NC, log_det_N = decoder.flow(fibres_NC, [condition_ND])
    back_NC, log_det_back_N = decoder.flow(latent_NC, [condition_ND], rev=True)
    assert (latent_NC - fibres_NC).abs().max() > 0.1
    torch.testing.assert_close(back_NC, fibres_NC, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back_N, -log_det_N, rtol=1e-9, atol=1e-9)


def test_without_a_condition_it_is_still_an_exact_density(make_decoder: MakeDecoder) -> None:
    """Inverse and log-determinant of the unconditional flow, in one."""
    decoder = make_decoder(5, condition_channels=0).double()
    for block in decoder.blocks:
        block.w_perm_inv.data = torch.linalg.inv(block.w_perm)
    fibres_NC, _ = fibres_and_condition(6, 5)
    latent_NC, log_det_N = decoder.flow(fibres_NC)
    torch.testing.assert_close(decoder.flow(latent_NC, rev=True)[0], fibres_NC, rtol=1e-9, atol=1e-9)
    for fibre_C, log_det in zip(fibres_NC, log_det_N, strict=True):
        jacobian_CC = torch.autograd.functional.jacobian(lambda x_C: decoder.flow(x_C[None])[0][0], fibre_C)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian_CC).logabsdet, rtol=0, atol=1e-5)


def test_the_unconditional_flow_ignores_the_condition_and_has_no_weights_for_it(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(6, condition_channels=0).double()
    fibres_NC, condition_ND = fibres_and_condition(20, 6)
    expected_N = decoder(fibres_NC, condition_ND)
    assert torch.equal(decoder(fibres_NC, 5 * condition_ND.flip(0)), expected_N)
    assert torch.equal(decoder(fibres_NC, torch.empty(20, 0)), expected_N)
    assert decoder.blocks[0].subnet[0].in_features == 3


@pytest.mark.parametrize("channels", [2, 3, 5, 8])
def test_likelihood_is_the_change_of_variables_with_autograds_jacobian(
    make_decoder: MakeDecoder, channels: int
) -> None:
    decoder = make_decoder(channels).double()
    fibres_NC, condition_ND = fibres_and_condition(6, channels)
    for fibre_C, condition_D in zip(fibres_NC, condition_ND, strict=True):

        def to_latent(x_C: Tensor, condition_D: Tensor = condition_D) -> Tensor:
            return decoder.flow(x_C[None], [condition_D[None]])[0][0]

        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(to_latent, fibre_C)).logabsdet
        normal = torch.distributions.Normal(0.0, 1.0)
        expected = (normal.log_prob(to_latent(fibre_C)).sum() + log_det) / channels
        actual = decoder(fibre_C[None], condition_D[None])[0]
        # |det| of the float32 rotations is 1 to 1e-7 only
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_density_of_two_channels_integrates_to_one(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(2, blocks=2).double()
    axis = torch.linspace(-40, 40, 401, dtype=torch.float64)
    grid_NC = torch.cartesian_prod(axis, axis)
    condition_ND = fibres_and_condition(1, 2)[1].expand(len(grid_NC), -1)
    with torch.no_grad():
        mass = torch.exp(2 * decoder(grid_NC, condition_ND)).sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


def freia_flow(channels: int, config: FlowConfig) -> SequenceINN:
    """The official code's decoder, built with FrEIA alone: soft permutation and all."""

    def subnet(dims_in: int, dims_out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dims_in, 2 * dims_in), nn.ReLU(), nn.Linear(2 * dims_in, dims_out))

    flow = SequenceINN(channels)
    for _ in range(config.blocks):
        flow.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(config.condition_channels,),
            subnet_constructor=subnet,
            affine_clamping=config.clamp,
            global_affine_type="SOFTPLUS",
            permute_soft=True,
        )
    return flow


@pytest.mark.parametrize("channels", [6, 17])
@pytest.mark.parametrize("clamp", [1.9, 0.7])
def test_equals_freia_with_the_same_state(channels: int, clamp: float) -> None:
    config = FlowConfig(blocks=8, clamp=clamp, condition_channels=128)
    flow = freia_flow(channels, config)
    decoder = Decoder(channels, config)
    decoder.flow.load_state_dict(flow.state_dict())  # strict: every name and shape is FrEIA's
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(32, channels, 128))
    latent_NC, log_det_N = flow(fibres_NC, [condition_ND])
    expected = (-channels / 2 * math.log(2 * math.pi) - latent_NC.square().sum(1) / 2 + log_det_N) / channels
    torch.testing.assert_close(decoder(fibres_NC, condition_ND), expected, rtol=1e-6, atol=1e-6)


# Levels of stride 8, 16 and 32 of tf_efficientnet_lite0 and efficientnet_b0, resnet18, wide_resnet50_2,
# mobilenetv3_large_100 and convnext_tiny.
LEVELS = sorted({40, 112, 320} | {128, 256, 512} | {512, 1024, 2048} | {40, 112, 960} | {192, 384, 768})


@pytest.mark.parametrize("condition_channels", [0, 128])
@pytest.mark.parametrize("channels", [2, 3, *LEVELS])
def test_the_shapes_of_a_state_are_known_without_a_decoder(channels: int, condition_channels: int) -> None:
    config = FlowConfig(blocks=2, condition_channels=condition_channels)
    decoder = Decoder(channels, config)
    found = {name: tuple(tensor.shape) for name, tensor in decoder.state().items()}
    assert found == state_shapes(channels, config)
    assert decoder.blocks[0].splits == [*halves(channels)]


@pytest.mark.parametrize(("matrix_bytes", "limit"), [(4, 510e6), (2, 260e6)])
def test_decoders_of_a_wide_resnet50_take_half_of_the_papers_bytes(matrix_bytes: int, limit: float) -> None:
    """The paper's model has 947 MB with its encoder."""
    shapes = [shape for channels in (512, 1024, 2048) for shape in state_shapes(channels, FlowConfig()).values()]
    stored = sum(math.prod(shape) * (matrix_bytes if min(shape) > 1 and len(shape) == 2 else 4) for shape in shapes)
    assert 0.9 * limit < stored <= limit


@pytest.mark.parametrize("channels", LEVELS)
def test_every_encoders_levels_have_finite_likelihoods(channels: int) -> None:
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(3, channels, 128))
    likelihood_N = Decoder(channels, FlowConfig(blocks=2))(fibres_NC, condition_ND)
    assert likelihood_N.shape == (3,)
    assert torch.isfinite(likelihood_N).all()


def test_official_defaults_are_ours() -> None:
    config = FlowConfig()
    assert (config.blocks, config.clamp, config.condition_channels) == (8, 1.9, 128)
    hidden = Decoder(41, config).blocks[0].subnet[0]
    assert (hidden.in_features, hidden.out_features) == (21 + 128, 2 * (21 + 128))  # ceil(C / 2) + 128


def test_fibres_do_not_see_each_other(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(10).double()
    fibres_NC, condition_ND = fibres_and_condition(20, 10)
    together = decoder(fibres_NC, condition_ND)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decoder(fibres_NC[order], condition_ND[order]), together[order])
    torch.testing.assert_close(decoder(fibres_NC[7:8], condition_ND[7:8])[0], together[7])


def test_the_position_changes_the_likelihood(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(10).double()
    fibres_NC, condition_ND = fibres_and_condition(20, 10)
    difference = decoder(fibres_NC, condition_ND) - decoder(fibres_NC, condition_ND.flip(0))
    assert difference.abs().min() > 1e-4


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("channels", [3, 64])
def test_likelihood_is_finite_for_zeros_and_for_large_features(
    make_decoder: MakeDecoder, channels: int, scale: float
) -> None:
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(16, channels))
    likelihood_N = make_decoder(channels, blocks=8)(scale * fibres_NC, condition_ND)
    assert torch.isfinite(likelihood_N).all()


def test_larger_features_are_less_likely(make_decoder: MakeDecoder) -> None:
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(16, 12))
    decoder = make_decoder(12)
    assert (decoder(100 * fibres_NC, condition_ND) < decoder(fibres_NC, condition_ND)).all()


def test_the_generator_decides_every_weight_and_nothing_else_does() -> None:
    def draw(seed: int, elsewhere: int) -> dict[str, Tensor]:
        np.random.seed(elsewhere)
        torch.manual_seed(elsewhere)
        return Decoder(9, FlowConfig(), torch.Generator().manual_seed(seed)).state_dict()

    first, same, other = draw(1, 10), draw(1, 20), draw(2, 10)
    assert all(torch.equal(first[name], same[name]) for name in first)
    drawn = [name for name in first if "global" not in name]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_only_the_rotations_are_fixed(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(7)
    decoder(*(tensor.float() for tensor in fibres_and_condition(4, 7))).sum().backward()
    moved = {name for name, p in decoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name, _ in decoder.named_parameters() if "w_perm" not in name}


def test_state_round_trip_needs_no_inverses(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(11)
    state = decoder.state()
    assert not [name for name in state if name.endswith("inv")]
    assert sum(name.endswith("w_perm") for name in state) == 3
    other = make_decoder(11, seed=5)
    other.load_state(state)
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(8, 11))
    assert torch.equal(other(fibres_NC, condition_ND), decoder(fibres_NC, condition_ND))
    latent_NC, _ = other.flow(fibres_NC, [condition_ND])
    back_NC, _ = other.flow(latent_NC, [condition_ND], rev=True)
    torch.testing.assert_close(back_NC, fibres_NC, rtol=1e-3, atol=1e-3)  # so the inverses were restored


def test_half_precision_is_for_matrices_only(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(11)
    whole, half = decoder.state(), decoder.state("float16")
    assert whole.keys() == half.keys()
    matrices = {name for name, tensor in whole.items() if name.endswith(("weight", "w_perm"))}
    assert {name for name, tensor in half.items() if tensor.dtype == torch.float16} == matrices
    assert all(torch.equal(half[name], whole[name]) for name in whole.keys() - matrices)
    decoder.round_to("float16")
    assert all(torch.equal(decoder.state()[name], tensor.float()) for name, tensor in half.items())


def test_half_precision_moves_likelihoods_by_its_rounding_alone(make_decoder: MakeDecoder) -> None:
    """The last rotation, whose rounding would stretch every latent vector, is the identity instead."""
    decoder, rounded = make_decoder(41), make_decoder(41)
    for block in (*decoder.blocks, *rounded.blocks):  # couplings that do nothing: rotations alone are rounded
        block.subnet[2].weight.data.zero_()
    for block in range(len(decoder.blocks) - 1):
        for of in (decoder, rounded):
            of.set_rotation(block, torch.eye(41))
    rounded.round_to("float16")
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(50, 41))
    assert not torch.equal(decoder.blocks[-1].w_perm, rounded.blocks[-1].w_perm)
    torch.testing.assert_close(rounded(fibres_NC, condition_ND), decoder(fibres_NC, condition_ND), rtol=1e-6, atol=1e-6)


def test_a_state_of_another_shape_or_with_gaps_is_refused(make_decoder: MakeDecoder) -> None:
    state = make_decoder(11).state()
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_decoder(12).load_state(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        make_decoder(11, blocks=4).load_state(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make_decoder(11, blocks=2).load_state(state)
    with pytest.raises(RuntimeError, match="global_scale"):
        make_decoder(11).load_state({name: t for name, t in state.items() if not name.endswith("1.global_scale")})


def test_blocks_end_in_the_rotation_that_was_set(make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(5, blocks=2)
    rotation_CC = sample_rotation(5, torch.Generator().manual_seed(3))
    before_NC, _ = decoder.flow(*_call(decoder, 5))
    old_CC = decoder.blocks[1].w_perm.clone()
    decoder.set_rotation(1, rotation_CC)
    after_NC, _ = decoder.flow(*_call(decoder, 5))
    torch.testing.assert_close(after_NC, before_NC @ old_CC @ rotation_CC.T, rtol=1e-4, atol=1e-4)


def _call(decoder: Decoder, channels: int) -> tuple[Tensor, list[Tensor]]:
    fibres_NC, condition_ND = (tensor.float() for tensor in fibres_and_condition(8, channels))
    return fibres_NC, [condition_ND]


@pytest.mark.parametrize("channels", [1, 2, 3, 40, 1024])
def test_rotations_are_orthogonal_with_determinant_one(channels: int) -> None:
    for seed in range(1 if channels > 100 else 6):
        rotation_CC = sample_rotation(channels, torch.Generator().manual_seed(seed)).double()
        torch.testing.assert_close(
            rotation_CC @ rotation_CC.T, torch.eye(channels, dtype=torch.float64), atol=1e-5, rtol=0
        )
        sign, logabsdet = torch.linalg.slogdet(rotation_CC)
        assert sign == 1
        assert abs(float(logabsdet)) < 1e-4


def test_rotations_are_uniform_on_so3() -> None:
    """Haar: each entry is uniform on [-1, 1] (Archimedes), and the angle has density (1 - cos) / pi on [0, pi]."""
    generator = torch.Generator().manual_seed(0)
    rotations = np.stack([sample_rotation(3, generator).numpy() for _ in range(1500)])
    for row in range(3):
        for column in range(3):
            entries = rotations[:, row, column]
            assert scipy.stats.kstest(entries, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
            assert abs(entries.mean()) < 0.06
    angles = np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert scipy.stats.kstest(angles, lambda angle: (angle - np.sin(angle)) / np.pi).pvalue > 1e-3


def test_a_wide_decoder_has_proper_rotations_throughout() -> None:
    """The paper's WRN50 has 1024 channels at stride 32; scipy's sampler, which FrEIA calls, would take minutes."""
    decoder = Decoder(1024, FlowConfig(blocks=2), torch.Generator().manual_seed(0))
    for block in decoder.blocks:
        torch.testing.assert_close(block.w_perm @ block.w_perm_inv, torch.eye(1024), atol=1e-5, rtol=0)
        assert block.w_perm.abs().max() < 0.5  # a soft rotation, no permutation
