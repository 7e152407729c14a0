"""A step's gradient is kept from ruining those after it, in the descent of our recipes and not in the paper's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cflow_ray.config import FlowConfig
from cflow_ray.model.descent import Descent
from cflow_ray.model.features import Features
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.paper_descent import PaperDescent
from cflow_ray.model.recipes import schedule_of
from cflow_ray.model.seeds import seeded
from cflow_ray.model.stepping import Stepper

CHANNELS, CONDITION, SIZE = 6, 4, (3, 4)
OF_ADAM = 0.1
"""The share of a first gradient in Adam's first moment."""


def made() -> Decoder:
    return Decoder(CHANNELS, FlowConfig(blocks=2, condition_channels=CONDITION), seeded(0, "decoder"))


def fibres(scale: float) -> Fibres:
    maps_ICHW = scale * torch.randn(8, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(1))
    features = Features.of_pyramid([maps_ICHW], (24, 32))
    return Fibres(features.levels[0], range(len(features)), CONDITION)


def moment_after_a_step(scale: float, largest: float) -> Tensor:
    stepper = Stepper(made(), largest_gradient=largest)
    stepper.step(*fibres(scale).draw(32, seeded(0, "draw"), 4), rate=1e-3)
    return stepper.state()["adam.exp_avg"]


def test_a_large_gradient_keeps_its_direction_and_loses_its_length() -> None:
    free, bound = moment_after_a_step(100.0, math.inf), moment_after_a_step(100.0, 0.5)
    assert float(free.norm()) > 10 * OF_ADAM
    assert float(bound.norm()) == pytest.approx(0.5 * OF_ADAM, rel=1e-4)
    assert torch.nn.functional.cosine_similarity(free, bound, dim=0) == pytest.approx(1.0, abs=1e-5)


def test_an_ordinary_gradient_is_left_as_it_is() -> None:
    free, bound = moment_after_a_step(1.0, math.inf), moment_after_a_step(1.0, 100.0)
    assert torch.equal(free, bound)


def test_our_descent_shortens_gradients_and_the_papers_does_not() -> None:
    wild = fibres(100.0)
    ours = Descent(made(), wild, schedule_of("fast", 8, wild.tiles, wild.positions), seeded(0, "a"), torch.float32)
    ours.step()
    assert float(ours.state()["adam.exp_avg"].norm()) == pytest.approx(0.5 * OF_ADAM, rel=1e-4)
    papers = PaperDescent(made(), wild, seeded(0, "a"), seeded(0, "order"))
    next(papers.one_pass())
    assert float(papers.state()["adam.exp_avg"].norm()) > 10 * OF_ADAM
