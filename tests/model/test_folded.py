"""The folded evaluator against FrEIA's own forward, on maps of every size, and what it keeps between them."""

from __future__ import annotations

from collections.abc import Callable

import FrEIA.framework
import FrEIA.modules
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cflow_ray.config import FlowConfig
from cflow_ray.model import flow
from cflow_ray.model.flow import Decoder
from cflow_ray.model.folded import FoldedDecoder
from cflow_ray.model.position import position_encoding

MakeDecoder = Callable[..., Decoder]

# The evaluator takes 1024 fibres at once: (32, 33) and (1, 1500) are cut, and so are 17 images of 8 x 8.
SIZES = [(1, 1), (1, 7), (5, 3), (8, 8), (32, 32), (32, 33), (1, 1500)]


def features(images: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(images, channels, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_freia(decoder: Decoder, features_BChw: Tensor) -> Tensor:
    """Log-likelihoods (B, h, w) with FrEIA's modules in float64, every fibre with its condition as a row."""
    B, C, h, w = features_BChw.shape
    rows_NC = features_BChw.double().permute(0, 2, 3, 1).reshape(-1, C)
    condition_ND = position_encoding(decoder.config.condition_channels, h, w).double().repeat(B, 1)
    exact = Decoder(decoder.channels, decoder.config).double()
    exact.load_state_dict(decoder.state_dict())
    return exact(rows_NC, condition_ND).view(B, h, w)


@torch.no_grad()
def near_normal(channels: int, blocks: int, condition_channels: int = 128, seed: int = 0) -> Decoder:
    """A decoder as a fit leaves it: every parameter at work, standard normal features likely."""
    generator = torch.Generator().manual_seed(1000 * seed + channels)
    config = FlowConfig(blocks=blocks, condition_channels=condition_channels)
    # the rotation of 2048 channels takes seconds to draw; FrEIA's own permutation stands in for it
    decoder = Decoder(channels, config, generator if channels < 2048 else None)
    for block in decoder.blocks:
        for parameter in (block.global_scale, block.global_offset, block.subnet[2].bias):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        weight = block.subnet[2].weight
        weight.copy_(2 / weight.shape[1] ** 0.5 * torch.randn(weight.shape, generator=generator))
    return decoder


BATCHES = {"size": st.sampled_from(SIZES), "images": st.sampled_from([1, 2, 3, 17]), "seed": st.integers(0, 1000)}


@settings(deadline=None, max_examples=60)
@given(shape=st.tuples(st.integers(2, 40), st.integers(2, 8), st.sampled_from([0, 4, 8, 128])), **BATCHES)
@example(shape=(2, 2, 0), size=(32, 33), images=2, seed=0)
@example(shape=(9, 4, 8), size=(8, 8), images=17, seed=0)
def test_of_likely_features_it_is_freias_forward_within_1e_5_nats(
    shape: tuple[int, int, int], size: tuple[int, int], images: int, seed: int
) -> None:
    """`shape`: channels, blocks and condition channels."""
    decoder = near_normal(*shape, seed)
    features_BChw = features(images, shape[0], size, seed)
    expected_Bhw = by_freia(decoder, features_BChw)
    # a Gaussian has -1.4 in the mean; couplings of few channels make wilder flows now and then
    assume(expected_Bhw.min() > -6)
    found_Bhw = FoldedDecoder.of(decoder)(features_BChw)
    assert found_Bhw.dtype == torch.float32
    torch.testing.assert_close(found_Bhw.double(), expected_Bhw, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(shape=st.tuples(st.integers(2, 9), st.integers(2, 4), st.sampled_from([0, 4, 8, 12])), **BATCHES)
@example(shape=(2, 2, 0), size=(32, 33), images=2, seed=0)
@example(shape=(9, 4, 8), size=(8, 8), images=17, seed=0)
def test_of_features_far_from_normal_it_is_freias_forward_to_float32s_digits(
    make_decoder: MakeDecoder, shape: tuple[int, int, int], size: tuple[int, int], images: int, seed: int
) -> None:
    """Of -1e3 nats a dimension and less, whose last digit in float32 is above 1e-5."""
    decoder = make_decoder(*shape, seed)
    features_BChw = features(images, shape[0], size, seed)
    found_Bhw = FoldedDecoder.of(decoder)(features_BChw)
    assert found_Bhw.dtype == torch.float32
    torch.testing.assert_close(found_Bhw.double(), by_freia(decoder, features_BChw), rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize(("channels", "blocks"), [(40, 8), (112, 8), (320, 8), (512, 2), (1024, 2), (2048, 2)])
def test_on_the_levels_of_encoders_too(channels: int, blocks: int) -> None:
    """The default encoder's levels, and those of the paper's WRN50."""
    features_BChw = features(2, channels, (7, 5))
    decoder = near_normal(channels, blocks)
    expected_Bhw = by_freia(decoder, features_BChw)
    assert -20 < expected_Bhw.min() < expected_Bhw.max() < 0
    assert expected_Bhw.std() > 0.01
    torch.testing.assert_close(FoldedDecoder.of(decoder)(features_BChw).double(), expected_Bhw, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "blocks"), [(40, 8), (320, 8)])
def test_of_a_decoder_stored_in_half_precision_it_is_freias_forward_too(channels: int, blocks: int) -> None:
    features_BChw = features(2, channels, (7, 5))
    decoder = near_normal(channels, blocks)
    decoder.round_to("float16")
    found_Bhw = FoldedDecoder(channels, decoder.config, decoder.state("float16"))(features_BChw)
    torch.testing.assert_close(found_Bhw.double(), by_freia(decoder, features_BChw), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("condition_channels", [0, 8])
def test_an_image_alone_has_the_likelihoods_it_has_in_a_batch(
    make_decoder: MakeDecoder, size: tuple[int, int], condition_channels: int
) -> None:
    folded = FoldedDecoder.of(make_decoder(6, condition_channels=condition_channels))
    features_BChw = features(18, 6, size)
    together_Bhw = folded(features_BChw)
    for index in (0, 7, 17):
        torch.testing.assert_close(folded(features_BChw[[index]])[0], together_Bhw[index], rtol=1e-6, atol=1e-6)


def test_the_place_of_a_fibre_decides_unless_the_flow_is_unconditional(make_decoder: MakeDecoder) -> None:
    constant_1Chw = torch.ones(1, 5, 6, 9)
    (conditional_hw,) = FoldedDecoder.of(make_decoder(5))(constant_1Chw)
    (unconditional_hw,) = FoldedDecoder.of(make_decoder(5, condition_channels=0))(constant_1Chw)
    assert len(conditional_hw.unique()) == 54
    assert unconditional_hw.unique().numel() == 1


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_likelihoods_are_finite_for_zeros_and_for_large_features(make_decoder: MakeDecoder, scale: float) -> None:
    folded = FoldedDecoder.of(make_decoder(64, blocks=8))
    assert torch.isfinite(folded(scale * features(2, 64, (4, 4)))).all()


def test_half_precision_features_are_widened(make_decoder: MakeDecoder) -> None:
    folded = FoldedDecoder.of(make_decoder(5))
    half_BChw = features(2, 5, (4, 4)).half()
    assert torch.equal(folded(half_BChw), folded(half_BChw.float()))


def test_the_position_biases_of_a_size_are_made_once_and_kept(make_decoder: MakeDecoder) -> None:
    folded = FoldedDecoder.of(make_decoder(6, blocks=3))
    empty = folded.bytes
    assert empty == sum(tensor.nbytes for tensor in folded.buffers())
    folded(features(2, 6, (3, 4)))
    made = folded.position_biases(3, 4)
    one_size = folded.bytes - empty
    assert one_size == sum(bias.nbytes for bias in made) == 3 * 4 * 12 * 2 * (3 + 8)
    folded(features(5, 6, (3, 4), seed=1))
    assert all(again is bias for again, bias in zip(folded.position_biases(3, 4), made, strict=True))
    folded(features(2, 6, (4, 3)))
    assert folded.bytes == empty + 2 * one_size


def test_later_steps_of_the_decoder_do_not_reach_its_evaluator(make_decoder: MakeDecoder) -> None:
    for channels, condition_channels in ((6, 8), (2, 0)):
        decoder = make_decoder(channels, condition_channels=condition_channels)
        features_BChw = features(2, channels, (3, 4))
        folded, used = FoldedDecoder.of(decoder), FoldedDecoder.of(decoder)
        before_Bhw = used(features_BChw)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(1)
        assert torch.equal(folded(features_BChw), before_Bhw)
        assert torch.equal(used(features_BChw), before_Bhw)


def test_folding_a_state_builds_no_module_of_freias(make_decoder: MakeDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building them is what made a checkpoint slow to load."""
    decoder = make_decoder(6)
    state = decoder.state()

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a module of FrEIA's was built")

    monkeypatch.setattr(FrEIA.modules.AllInOneBlock, "__init__", refuse)
    monkeypatch.setattr(FrEIA.framework.SequenceINN, "__init__", refuse)
    with pytest.raises(AssertionError, match="was built"):
        flow.Decoder(6, decoder.config)
    assert FoldedDecoder(6, decoder.config, state)(features(1, 6, (2, 2))).shape == (1, 2, 2)
