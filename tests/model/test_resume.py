"""A fit that is cut off at any point goes on from its savepoints to the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.model.context import FitContext, State
from cflow_ray.model.features import Features
from cflow_ray.model.fitted import Fitted
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.flow import Decoder
from cflow_ray.model.progress import FitProgress

SIZES = ((5, 16, 16), (7, 4, 4))
"""Channels, height, width of two levels."""


class CutError(Exception):
    """What ends a fit here, as a killed worker would."""


class Memory:
    """Savepoints of every look, kept as a store would: copies, by name."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.loaded: list[str] = []

    def load(self, part: str) -> State | None:
        if part in self.states:
            self.loaded.append(part)
        return self.states.get(part)

    def due(self, part: str) -> bool:
        return True

    def save(self, part: str, state: State) -> None:
        self.states[part] = {name: tensor.clone() for name, tensor in state.items()}

    def forget(self, prefix: str) -> None:
        self.states = {part: state for part, state in self.states.items() if not part.startswith(prefix)}


def config(**changes: Any) -> DetectorConfig:
    settings: dict[str, Any] = {"calibration": "split", "recipe": "fast"} | changes
    flow = FlowConfig(blocks=2, condition_channels=8)
    return DetectorConfig(encoder=EncoderConfig(strides=(8, 16)), flow=flow, input_size=64, **settings)


def features(images: int = 40) -> Features:
    generator = torch.Generator().manual_seed(5)
    return Features.of_pyramid([torch.randn(images, *size, generator=generator) for size in SIZES], (64, 64))


def cut_after(looks: int) -> FitContext:
    """A context with savepoints that cuts the fit off at its n-th look, before that look is kept."""
    seen = 0

    def watch(progress: FitProgress, decoder: Decoder) -> None:
        nonlocal seen
        seen += 1
        if seen == looks:
            raise CutError

    return FitContext(watch, Memory())


def everything(fitted: Fitted) -> dict[str, Tensor]:
    weights = {
        f"{level}.{name}": tensor
        for level, decoder in enumerate(fitted.decoders)
        for name, tensor in decoder.state_dict().items()
    }
    calibration = fitted.calibration
    return weights | {"peaks": torch.tensor(calibration.peaks), "scores": torch.tensor(calibration.scores)}


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.5),
        ({}, 0.8),
        ({"calibration": "cross", "folds": 2}, 0.25),
        ({"calibration": "cross", "folds": 2}, 0.9),
        ({"recipe": "paper"}, 0.7),
    ],
    ids=["first level", "second level", "first fold", "last fold", "paper, second level"],
)
def test_a_fit_goes_on_to_the_same_weights(settings: dict[str, Any], share: float, one_thread: None) -> None:
    """Cut off after a share of its looks, with one thread: one level after the other."""
    given, looks = features(8 if settings else 30), list[FitProgress]()
    counting = FitContext(lambda progress, _: looks.append(progress))
    undisturbed = everything(fit_detector(given, config(**settings), 3, counting))
    cut = cut_after(round(share * len(looks)))
    with pytest.raises(CutError):
        fit_detector(given, config(**settings), 3, cut)
    assert isinstance(cut.savepoints, Memory)
    steps = list[FitProgress]()
    context = FitContext(lambda progress, _: steps.append(progress), cut.savepoints)
    resumed = everything(fit_detector(given, config(**settings), 3, context))
    assert cut.savepoints.loaded
    assert len(steps) < len(looks)
    assert undisturbed.keys() == resumed.keys()
    for name, tensor in undisturbed.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_what_was_fitted_is_not_fitted_again() -> None:
    """With the savepoints of a fit that came to its end, another takes no step."""
    folds = config(calibration="cross", folds=2)
    cut = cut_after(10**6)
    fit_detector(features(), folds, 3, cut)  # to its end
    seen = list[FitProgress]()
    fit_detector(features(), folds, 3, FitContext(lambda progress, _: seen.append(progress), cut.savepoints))
    assert seen == []
    assert isinstance(cut.savepoints, Memory)
    assert set(cut.savepoints.states) == {"scores", "model2-level0", "model2-level1"}


def test_a_state_is_tensors_alone() -> None:
    cut = cut_after(10**6)
    fit_detector(features(), config(), 3, cut)
    assert isinstance(cut.savepoints, Memory)
    for state in cut.savepoints.states.values():
        assert all(isinstance(tensor, Tensor) for tensor in state.values())
